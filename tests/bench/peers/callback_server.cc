// callback_server: a peer to measure the service against, written as gRPC's examples would have it: the callback API,
// generated messages, and a thread that collects requests for a fixed window and computes each batch on the CPU. Serves
// the unary method with the default outputs in both modes.

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/time/time.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:0", "Host and port; port 0 takes a free one");
ABSL_FLAG(absl::Duration, batch_window, absl::Milliseconds(1), "How long a batch waits for more requests");
ABSL_FLAG(size_t, max_batch, 256, "Requests that end the wait");

namespace nsa::metadata::bench {
namespace {

constexpr int64_t kMaxTokens = 4 << 20;

grpc::Status Refuse(const char* why) { return {grpc::StatusCode::INVALID_ARGUMENT, why}; }

grpc::Status Check(const v1::ExpandRequest& request) {
  const auto negative = [](int32_t length) { return length < 0; };
  const auto& extend_seq_lens = request.extend_seq_lens();
  if (extend_seq_lens.size() != request.seq_lens_size()) return Refuse("lengths differ");
  if (std::any_of(extend_seq_lens.begin(), extend_seq_lens.end(), negative) ||
      std::any_of(request.seq_lens().begin(), request.seq_lens().end(), negative)) {
    return Refuse("a length is negative");
  }
  if (request.nsa_index_topk() < 1) return Refuse("nsa_index_topk is below 1");
  if (!v1::SequenceMode_IsValid(request.mode())) return Refuse("mode is not known");
  for (const int output : request.outputs()) {
    if (output != v1::OUTPUT_SEQLENS_EXPANDED && output != v1::OUTPUT_NSA_CACHE_SEQLENS) {
      return {grpc::StatusCode::UNIMPLEMENTED, "only the default outputs are served"};
    }
  }
  return grpc::Status::OK;
}

// `count` values that are yet to be written.
int32_t* Grow(google::protobuf::RepeatedField<int32_t>& field, int64_t count) {
  field.Reserve(static_cast<int>(count));
  return field.AddNAlreadyReserved(static_cast<int>(count));
}

grpc::Status Expand(const v1::ExpandRequest& request, v1::ExpandResponse& response) {
  if (grpc::Status status = Check(request); !status.ok()) return status;
  int64_t total_tokens = 0;
  for (const int32_t q : request.extend_seq_lens()) total_tokens += q;
  if (total_tokens > kMaxTokens) return Refuse("too many tokens");

  const bool causal = request.mode() == v1::SEQUENCE_MODE_CAUSAL;
  response.set_request_id(request.request_id());
  response.set_total_tokens(total_tokens);
  response.set_mode(causal ? v1::SEQUENCE_MODE_CAUSAL : v1::SEQUENCE_MODE_REPEAT);
  int32_t* const seqlens_expanded = Grow(*response.mutable_seqlens_expanded(), total_tokens);
  int32_t* const nsa_cache_seqlens = Grow(*response.mutable_nsa_cache_seqlens(), total_tokens);
  int32_t* out = seqlens_expanded;
  for (int b = 0; b < request.seq_lens_size(); ++b) {
    const int32_t q = request.extend_seq_lens(b);
    const int32_t s = request.seq_lens(b);
    if (causal) {
      for (int32_t i = 0; i < q; ++i) out[i] = std::max(s - q + i + 1, 0);
    } else {
      std::fill_n(out, q, s);
    }
    out += q;
  }
  const int32_t topk = request.nsa_index_topk();
  for (int64_t t = 0; t < total_tokens; ++t) nsa_cache_seqlens[t] = std::min(seqlens_expanded[t], topk);
  return grpc::Status::OK;
}

struct Call {
  const v1::ExpandRequest* request;
  v1::ExpandResponse* response;
  grpc::ServerUnaryReactor* reactor;
  std::chrono::steady_clock::time_point arrived;
};

// Answers calls in batches, on a thread of its own. To be destroyed once no call is left.
class Batcher {
 public:
  Batcher(std::chrono::nanoseconds window, size_t max_batch) : window_(window), max_batch_(max_batch) {}
  ~Batcher() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

  void Add(const Call& call) {
    size_t waiting = 0;
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(call);
      waiting = waiting_.size();
    }
    // Those between would wake the thread for nothing.
    if (waiting == 1 || waiting == max_batch_) changed_.notify_one();
  }

 private:
  void Run() {
    for (std::vector<Call> batch = Take(); !batch.empty(); batch = Take()) {
      for (const Call& call : batch) call.reactor->Finish(Expand(*call.request, *call.response));
    }
  }

  // Empty when stopping.
  std::vector<Call> Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) return {};
    changed_.wait_until(lock, waiting_.front().arrived + window_,
                        [this] { return stopping_ || waiting_.size() >= max_batch_; });
    const auto end = waiting_.begin() + static_cast<std::ptrdiff_t>(std::min(waiting_.size(), max_batch_));
    std::vector<Call> batch(waiting_.begin(), end);
    waiting_.erase(waiting_.begin(), end);
    return batch;
  }

  const std::chrono::nanoseconds window_;
  const size_t max_batch_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Call> waiting_;
  bool stopping_ = false;
  std::thread thread_{[this] { Run(); }};
};

class Service : public v1::MetadataService::CallbackService {
 public:
  explicit Service(Batcher& batcher) : batcher_(batcher) {}

  grpc::ServerUnaryReactor* Expand(grpc::CallbackServerContext* context, const v1::ExpandRequest* request,
                                   v1::ExpandResponse* response) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    batcher_.Add({request, response, reactor, std::chrono::steady_clock::now()});
    return reactor;
  }

 private:
  Batcher& batcher_;
};

int Serve() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  Batcher batcher(absl::ToChronoNanoseconds(absl::GetFlag(FLAGS_batch_window)), absl::GetFlag(FLAGS_max_batch));
  Service service(batcher);
  const std::string listen = absl::GetFlag(FLAGS_listen);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server || port == 0) {
    fprintf(stderr, "cannot listen on %s\n", listen.c_str());
    return EXIT_FAILURE;
  }
  fprintf(stderr, "callback_server serving: grpc=%s:%d\n", listen.substr(0, listen.rfind(':')).c_str(), port);
  int signal = 0;
  sigwait(&signals, &signal);
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace nsa::metadata::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return nsa::metadata::bench::Serve();
}
