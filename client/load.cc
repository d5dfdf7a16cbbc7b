#include "client/load.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client.h"
#include "client/load_loop.h"
#include "client/mutex.h"
#include "client/prepare_grpc.h"

namespace nsa::metadata::client {
namespace {

// How many of `total` fall to part `index` of `parts`.
int64_t Share(int64_t total, int64_t index, int64_t parts) { return total / parts + (index < total % parts ? 1 : 0); }

int ThreadsFor(const LoadOptions& options) {
  const int wanted =
      options.threads > 0 ? options.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 2);
  const int carriers = options.streams > 0 ? std::min(options.streams, options.channels) : options.channels;
  return static_cast<int>(std::min<int64_t>({wanted, carriers, options.in_flight}));
}

absl::Status Check(const LoadOptions& options) {
  const auto range = [](const char* name, auto value, const char* want) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", want ", want));
  };
  if (options.target.empty()) return absl::InvalidArgumentError("the target is empty, want a name as \"host:port\"");
  if (options.channels < 1 || options.channels > 1024) return range("channels", options.channels, "1 to 1024");
  if (options.streams < 0 || options.streams > 1024) return range("streams", options.streams, "0 to 1024");
  if (options.in_flight < 1 || options.in_flight > int64_t{1} << 17) {
    return range("in_flight", options.in_flight, "1 to 131072");
  }
  // A server takes 100 calls a connection by default, and gRPC's client keeps what goes beyond waiting unseen.
  if (options.streams == 0 && options.in_flight > int64_t{100} * options.channels) {
    return range("in_flight", options.in_flight, "at most 100 for each of the channels");
  }
  if (options.rate < 0 || options.rate > 1e7) return range("rate", options.rate, "0 to 10000000");
  if (options.threads < 0 || options.threads > 256) return range("threads", options.threads, "0 to 256");
  if (options.duration <= absl::ZeroDuration()) {
    return range("duration", absl::FormatDuration(options.duration), "more than 0");
  }
  if (options.warm_up < absl::ZeroDuration())
    return range("warm_up", absl::FormatDuration(options.warm_up), "0 or more");
  if (options.max_attempts < 1 || options.max_attempts > 5) {
    return range("max_attempts", options.max_attempts, "1 to 5");
  }
  if (options.timeout <= absl::ZeroDuration()) {
    return range("timeout", absl::FormatDuration(options.timeout), "more than 0");
  }
  return absl::OkStatus();
}

std::vector<std::shared_ptr<grpc::Channel>> Connect(const LoadOptions& options) {
  PrepareGrpc();
  grpc::ChannelArguments arguments;
  if (options.max_attempts > 1) {
    arguments = ChannelArgumentsOf({.retry = {.max_attempts = options.max_attempts}});
  } else {
    // Each a connection of its own, and every refusal seen.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  }
  arguments.SetMaxReceiveMessageSize(-1);
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  const auto credentials = options.credentials == nullptr ? grpc::InsecureChannelCredentials() : options.credentials;
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < options.channels; ++i) {
    channels.push_back(grpc::CreateCustomChannel(options.target, credentials, arguments));
  }
  return channels;
}

LoadLoop::Schedule ScheduleOf(const LoadOptions& options, LoadClock::time_point now, int thread, int threads) {
  LoadLoop::Schedule schedule;
  schedule.begin = now;
  schedule.measured = now + absl::ToChronoNanoseconds(options.warm_up);
  schedule.end = schedule.measured + absl::ToChronoNanoseconds(options.duration);
  schedule.timeout = absl::ToChronoMicroseconds(options.timeout);
  if (options.rate > 0) {
    // The threads' requests come due in turn.
    schedule.interval = absl::ToChronoNanoseconds(absl::Seconds(threads / options.rate));
    schedule.begin += schedule.interval * thread / threads;
  }
  return schedule;
}

// Gives each loop its connections, and each connection its requests.
std::vector<std::unique_ptr<LoadLoop>> MakeLoops(const BenchRequest& request, const LoadOptions& options) {
  const std::vector<std::shared_ptr<grpc::Channel>> channels = Connect(options);
  const int threads = ThreadsFor(options);
  const LoadClock::time_point now = LoadClock::now();
  std::vector<std::unique_ptr<LoadLoop>> loops;
  for (int i = 0; i < threads; ++i) {
    loops.push_back(std::make_unique<LoadLoop>(request, ScheduleOf(options, now, i, threads)));
  }
  const int carriers = options.streams > 0 ? options.streams : options.channels;
  for (int i = 0; i < carriers; ++i) {
    const std::shared_ptr<grpc::Channel>& channel = channels[static_cast<size_t>(i) % channels.size()];
    LoadLoop& loop = *loops[static_cast<size_t>(i) % channels.size() % loops.size()];
    const int64_t in_flight = Share(options.in_flight, i, carriers);
    options.streams > 0 ? loop.AddStream(channel, in_flight) : loop.AddCalls(channel, in_flight);
  }
  return loops;
}

// Runs the loops to their ends, a thread each.
void RunAll(const std::vector<std::unique_ptr<LoadLoop>>& loops, const std::function<void(int64_t ended)>& progress) {
  Mutex mutex;
  CondVar changed;
  size_t running = loops.size();  // guarded by mutex
  std::vector<std::thread> threads;
  for (const auto& loop : loops) {
    threads.emplace_back([&loop = *loop, &mutex, &changed, &running] {
      loop.Run();
      MutexLock lock(&mutex);
      --running;
      changed.SignalAll();
    });
  }
  mutex.Lock();
  while (running > 0) {
    changed.WaitUntil(mutex, absl::Now() + absl::Milliseconds(200));
    int64_t ended = 0;
    for (const auto& loop : loops) ended += loop->ended();
    progress(ended);
  }
  mutex.Unlock();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const BenchRequest& request, const LoadOptions& options,
                                   const std::function<void(int64_t ended)>& progress) {
  if (const absl::Status status = Check(options); !status.ok()) return status;
  const std::vector<std::unique_ptr<LoadLoop>> loops = MakeLoops(request, options);
  RunAll(loops, progress);
  LoadResult result;
  std::chrono::nanoseconds wall = {};
  for (const auto& loop : loops) {
    LoadResult part = loop->TakeResult();
    wall = std::max(wall, part.tally.wall);
    result.tally.Merge(part.tally);
    result.timings.insert(result.timings.end(), part.timings.begin(), part.timings.end());
    result.waited += part.waited;
    result.given_up += part.given_up;
  }
  result.tally.Finish(wall);
  return result;
}

}  // namespace nsa::metadata::client
