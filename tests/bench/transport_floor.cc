// transport_floor: what a call costs when nothing is done for it. The service's transport (its acceptor, its channel
// arguments, its raw asynchronous API, a completion queue a thread) around an echo that answers the same static bytes
// each time: those that are right for the request that `nsa-metadata bench` sends with the same shape.

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "client/bench_request.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/acceptor.h"
#include "server/address.h"
#include "server/completion_queue.h"
#include "server/connection_arguments.h"
#include "server/options.h"

ABSL_FLAG(std::vector<std::string>, listen, {"127.0.0.1:0"}, "As the server's");
ABSL_FLAG(int64_t, completion_queues, 0, "As the server's");
ABSL_FLAG(int64_t, num_sequences, 4, "As nsa-metadata bench's");
ABSL_FLAG(int64_t, reply_bytes, 142, "As nsa-metadata bench's");

namespace nsa::metadata::bench {
namespace {

using grpc::experimental::ExternalConnectionAcceptor;

// As the service's, see server/service.cc.
constexpr int kCallsWaiting = 32;

using EchoService = v1::MetadataService::WithRawMethod_Expand<
    v1::MetadataService::WithRawMethod_ExpandStream<v1::MetadataService::Service>>;

struct Echo {
  EchoService service;
  grpc::ByteBuffer unary_reply;
  // What a stream's message has before its id's three bytes, and after them. The latter is as large as the reply.
  std::string stream_head;
  grpc::Slice stream_rest;
};

class UnaryEcho {
 public:
  UnaryEcho(Echo& echo, grpc::ServerCompletionQueue& queue) : echo_(echo), queue_(queue) {
    echo_.service.RequestExpand(&context_, &request_, &writer_, &queue_, &queue_, server::Started(&arrived_));
  }

 private:
  void OnArrived(bool ok) {
    if (!ok) {
      delete this;
      return;
    }
    new UnaryEcho(echo_, queue_);
    writer_.Finish(echo_.unary_reply, grpc::Status::OK, server::Started(&sent_));
  }
  void OnSent(bool) { delete this; }

  Echo& echo_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  grpc::ByteBuffer request_;
  grpc::ServerAsyncResponseWriter<grpc::ByteBuffer> writer_{&context_};
  server::MemberTag<UnaryEcho> arrived_{this, &UnaryEcho::OnArrived};
  server::MemberTag<UnaryEcho> sent_{this, &UnaryEcho::OnSent};
};

// Reads, answers, reads on: one operation at a time in each direction.
class StreamEcho {
 public:
  StreamEcho(Echo& echo, grpc::ServerCompletionQueue& queue) : echo_(echo), queue_(queue) {
    echo_.service.RequestExpandStream(&context_, &stream_, &queue_, &queue_, server::Started(&arrived_));
  }

 private:
  void OnArrived(bool ok) {
    if (!ok) {
      delete this;
      return;
    }
    new StreamEcho(echo_, queue_);
    Read();
  }
  void Read() {
    reading_ = true;
    stream_.Read(&request_, server::Started(&read_));
  }
  void OnRead(bool ok) {
    reading_ = false;
    if (!ok) {
      ended_ = true;
    } else {
      waiting_.push_back(Reply());
      Write();
      Read();
    }
    EndIfDone();
  }
  void Write() {
    if (writing_ || waiting_.empty()) return;
    writing_ = true;
    stream_.Write(waiting_.front(), server::Started(&written_));
  }
  void OnWritten(bool ok) {
    writing_ = false;
    waiting_.pop_front();
    if (!ok) waiting_.clear();
    Write();
    EndIfDone();
  }
  void EndIfDone() {
    if (ended_ && !reading_ && !writing_ && waiting_.empty()) {
      stream_.Finish(grpc::Status::OK, server::Started(&finished_));
    }
  }
  void OnFinished(bool) { delete this; }

  // The static reply with the request's id. An expand's tag and length come first in a request, then the id's tag.
  grpc::ByteBuffer Reply() {
    std::string begin;  // which may lie in several slices
    (void)request_.Dump(&slices_);
    for (size_t i = 0; i < slices_.size() && begin.size() < kIdWithin; ++i) {
      const size_t bytes = std::min(slices_[i].size(), kIdWithin - begin.size());
      begin.append(reinterpret_cast<const char*>(slices_[i].begin()), bytes);
    }
    slices_.clear();
    request_.Clear();
    size_t id_at = 1;
    while (static_cast<uint8_t>(begin[id_at]) >= 0x80) ++id_at;
    std::string head = echo_.stream_head + begin.substr(id_at + 2, kIdBytes);
    const grpc::Slice reply[] = {grpc::Slice(head), echo_.stream_rest};
    return {reply, 2};
  }

  static constexpr size_t kIdBytes = 3;
  static constexpr size_t kIdWithin = 16;
  Echo& echo_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer> stream_{&context_};
  grpc::ByteBuffer request_;
  std::vector<grpc::Slice> slices_;
  std::deque<grpc::ByteBuffer> waiting_;
  bool reading_ = false;
  bool writing_ = false;
  bool ended_ = false;
  server::MemberTag<StreamEcho> arrived_{this, &StreamEcho::OnArrived};
  server::MemberTag<StreamEcho> read_{this, &StreamEcho::OnRead};
  server::MemberTag<StreamEcho> written_{this, &StreamEcho::OnWritten};
  server::MemberTag<StreamEcho> finished_{this, &StreamEcho::OnFinished};
};

grpc::Slice Static(const std::string& bytes) {
  return grpc::Slice(bytes.data(), bytes.size(), grpc::Slice::STATIC_SLICE);
}

// The replies to the benchmark's request; their bytes live as long as the process.
void SetReplies(const client::BenchRequest& request, Echo& echo) {
  const auto& unary = *new std::string(request.reply().SerializeAsString());
  const grpc::Slice slice = Static(unary);
  echo.unary_reply = grpc::ByteBuffer(&slice, 1);
  v1::ExpandStreamResponse message;
  *message.mutable_expansion() = request.reply();
  message.set_last_chunk(true);
  const auto& stream = *new std::string(message.SerializeAsString());
  // The reply's own bytes begin with the id's tag.
  const size_t id_at = stream.find(unary) + 1;
  echo.stream_head = stream.substr(0, id_at);
  echo.stream_rest = Static(*new std::string(stream.substr(id_at + 3)));
}

int Serve() {
  client::BenchShape shape;
  shape.num_sequences = absl::GetFlag(FLAGS_num_sequences);
  shape.reply_bytes = absl::GetFlag(FLAGS_reply_bytes);
  const absl::StatusOr<client::BenchRequest> request = client::BenchRequest::Create(shape);
  if (!request.ok()) {
    fprintf(stderr, "%s\n", std::string(request.status().message()).c_str());
    return EXIT_FAILURE;
  }
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  Echo echo;
  SetReplies(*request, echo);
  server::Options options;
  options.completion_queues = absl::GetFlag(FLAGS_completion_queues);
  options = server::Resolve(options);

  std::vector<server::Listener> listeners;
  std::vector<std::string> addresses;
  for (const std::string& text : absl::GetFlag(FLAGS_listen)) {
    const absl::StatusOr<server::Address> address = server::ParseAddress(text);
    absl::StatusOr<server::Listener> listener = address.ok() ? server::Listener::Open(*address) : address.status();
    if (!listener.ok()) {
      fprintf(stderr, "%s\n", std::string(listener.status().message()).c_str());
      return EXIT_FAILURE;
    }
    addresses.push_back(listener->address().ToString());
    listeners.push_back(*std::move(listener));
  }
  grpc::ServerBuilder builder;
  builder.RegisterService(&echo.service);
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues;
  for (int64_t i = 0; i < options.completion_queues; ++i) queues.push_back(builder.AddCompletionQueue());
  server::SetConnectionArguments(builder, options.connection);
  const std::unique_ptr<ExternalConnectionAcceptor> connections = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, grpc::InsecureServerCredentials());
  const std::unique_ptr<grpc::Server> grpc_server = builder.BuildAndStart();
  std::vector<std::thread> threads;
  for (const auto& queue : queues) {
    for (int i = 0; i < kCallsWaiting; ++i) new UnaryEcho(echo, *queue);
    new StreamEcho(echo, *queue);
    threads.emplace_back([&queue = *queue] { server::RunQueue(queue); });
  }
  server::Acceptor acceptor({.max_connections = static_cast<size_t>(options.connection.max_connections),
                             .accepted =
                                 [&connections](int fd, int listener_fd) {
                                   ExternalConnectionAcceptor::NewConnectionParameters connection;
                                   connection.fd = fd;
                                   connection.listener_fd = listener_fd;
                                   connections->HandleNewConnection(&connection);
                                 },
                             .refused = [] {}},
                            std::move(listeners));
  acceptor.Start();
  fprintf(stderr, "transport_floor serving: grpc=%s\n", absl::StrJoin(addresses, ",").c_str());
  int signal = 0;
  sigwait(&signals, &signal);
  // Nothing is to be drained.
  std::quick_exit(EXIT_SUCCESS);
}

}  // namespace
}  // namespace nsa::metadata::bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("An echo on the service's transport, to measure the service against.");
  absl::ParseCommandLine(argc, argv);
  // As the server does, see server/main.cc.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return nsa::metadata::bench::Serve();
}
