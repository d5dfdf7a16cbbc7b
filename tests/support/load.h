// Many calls at once whose replies are all compared, some of which are given up.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "tests/support/requests.h"
#include "tests/support/rpc.h"

namespace nsa::metadata::testing {

// Calls from one thread, so many in flight. Not thread-safe.
class Load {
 public:
  using Stub = v1::MetadataService::Stub;
  // How a call is made.
  struct Treatment {
    std::chrono::nanoseconds deadline = std::chrono::seconds(60);
    bool cancel = false;
  };

  // Sends `requests` in turn.
  Load(std::unique_ptr<Stub> stub, const std::vector<TestRequest>& requests);
  ~Load();
  Load(const Load&) = delete;

  // Makes so many calls, each as `draw` says, and waits for their ends; `ended` is told how many there were, after
  // each.
  void Run(
      int64_t calls, const std::function<Treatment(std::mt19937_64&)>& draw,
      const std::function<void(int64_t)>& ended = [](int64_t) {});
  // Sends further calls by `stub`, once its connection is there: before their deadlines count.
  void Use(std::unique_ptr<Stub> stub);

  // How calls ended, and how many replies were wrong.
  std::array<int64_t, 17> codes{};
  int64_t wrong = 0;
  // The ends of calls that their deadlines ended, after these.
  std::vector<double> late_us;

 private:
  struct Kind {
    v1::ExpandRequest request;
    Arrays answer;
  };
  struct Pending;

  void Start(const Kind& kind, const Treatment& treatment);
  void End(Pending* call);
  void CancelAll();

  std::vector<Kind> kinds_;
  std::unique_ptr<Stub> stub_;
  grpc::CompletionQueue queue_;
  std::set<Pending*> to_cancel_;
};

}  // namespace nsa::metadata::testing
