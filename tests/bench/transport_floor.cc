// transport_floor: what a call costs when nothing is done for it. The service's transport (its acceptor, its channel
// arguments, its raw asynchronous API, a completion queue a thread) around an echo that answers the same static bytes
// each time: those that are right for the request that `nsa-metadata bench` sends with the same shape.

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
#include "grpcpp/server_builder.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/acceptor.h"
#include "server/completion_queue.h"
#include "server/grpc_connections.h"
#include "server/options.h"
#include "server/stop_signals.h"

ABSL_FLAG(std::vector<std::string>, listen, {"127.0.0.1:0"}, "As the server's");
ABSL_FLAG(int64_t, completion_queues, 0, "As the server's");
ABSL_FLAG(int64_t, num_sequences, 4, "As nsa-metadata bench's");
ABSL_FLAG(int64_t, reply_bytes, 142, "As nsa-metadata bench's");

namespace nsa::metadata::bench {
namespace {

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
    begin.resize(kIdWithin);  // whatever else may have come
    size_t id_at = 1;
    while (static_cast<uint8_t>(begin[id_at]) >= 0x80 && id_at < kMostLength) ++id_at;
    std::string head = echo_.stream_head + begin.substr(id_at + 2, kIdBytes);
    const grpc::Slice reply[] = {grpc::Slice(head), echo_.stream_rest};
    return {reply, 2};
  }

  static constexpr size_t kIdBytes = 3;
  static constexpr size_t kIdWithin = 16;
  static constexpr size_t kMostLength = 5;  // bytes of a varint of 32 bits
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

// The echo on its completion queues, a thread each, and an acceptor of our own. Serves from Start on, for as long as
// the process lives.
class Floor {
 public:
  // INVALID_ARGUMENT or UNAVAILABLE as the shape, an address or its port is at fault.
  absl::Status Start(const client::BenchShape& shape, const std::vector<std::string>& listen,
                     const server::Options& options) {
    const absl::StatusOr<client::BenchRequest> request = client::BenchRequest::Create(shape);
    if (!request.ok()) return request.status();
    SetReplies(*request, echo_);
    absl::StatusOr<std::vector<server::Listener>> listeners = server::Listener::OpenAll(listen);
    if (!listeners.ok()) return listeners.status();
    if (!BuildServer(options)) return absl::InternalError("gRPC did not start a server");
    acceptor_ = std::make_unique<server::Acceptor>(
        server::Acceptor::Options{
            .max_connections = static_cast<size_t>(options.connection.max_connections),
            .accepted = [this](int fd, int listener_fd) { server::HandOver(fd, listener_fd, *connections_); },
            .refused = [] {},
            .delivered = delivered_},
        *std::move(listeners));
    acceptor_->Start();
    return absl::OkStatus();
  }

  std::string addresses() const {
    std::vector<std::string> addresses;
    for (const server::Listener& listener : acceptor_->listeners()) addresses.push_back(listener.address().ToString());
    return absl::StrJoin(addresses, ",");
  }

 private:
  bool BuildServer(const server::Options& options) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&echo_.service);
    for (int64_t i = 0; i < options.completion_queues; ++i) queues_.push_back(builder.AddCompletionQueue());
    server::SetConnectionArguments(builder, options.connection);
    connections_ = server::AddConnections(builder);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return false;
    for (const auto& queue : queues_) {
      for (int i = 0; i < kCallsWaiting; ++i) new UnaryEcho(echo_, *queue);
      new StreamEcho(echo_, *queue);
      threads_.emplace_back([&queue = *queue] { server::RunQueue(queue); });
    }
    return true;
  }

  Echo echo_;
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> connections_;
  std::unique_ptr<grpc::Server> server_;
  server::Delivered delivered_;
  std::unique_ptr<server::Acceptor> acceptor_;
  std::vector<std::thread> threads_;
};

int Serve() {
  const sigset_t signals = server::BlockStopSignals();
  client::BenchShape shape;
  shape.num_sequences = absl::GetFlag(FLAGS_num_sequences);
  shape.reply_bytes = absl::GetFlag(FLAGS_reply_bytes);
  server::Options options;
  options.completion_queues = absl::GetFlag(FLAGS_completion_queues);
  // It ends with the process, whose threads run to the end.
  Floor& floor = *new Floor;
  const absl::Status started = floor.Start(shape, absl::GetFlag(FLAGS_listen), server::Resolve(options));
  if (!started.ok()) {
    fprintf(stderr, "%s\n", std::string(started.message()).c_str());
    return EXIT_FAILURE;
  }
  fprintf(stderr, "transport_floor serving: grpc=%s\n", floor.addresses().c_str());
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
  // As the server does, see server/run.cc.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return nsa::metadata::bench::Serve();
}
