#include "server/server.h"

#include <google/protobuf/util/time_util.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/server_builder.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "server/acceptor.h"
#include "server/address.h"
#include "server/batcher.h"
#include "server/gauges.h"
#include "server/grpc_connections.h"
#include "server/health_server.h"
#include "server/held_answers.h"
#include "server/history.h"
#include "server/limits.h"
#include "server/metrics.h"
#include "server/metrics_server.h"
#include "server/mutex.h"
#include "server/output_pool.h"
#include "server/peer.h"
#include "server/server_options.h"
#include "server/service.h"
#include "server/status_page.h"
#include "server/trust.h"
#include "server/version.h"
#include "spdlog/spdlog.h"

namespace nsa::metadata::server {
namespace {

using grpc::experimental::ExternalConnectionAcceptor;

// What the options name; one line in the log says what it became and why.
absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const Options& options) {
  if (options.backend == "reference") return kernels::CreateReferenceBackend();
  if (options.backend == "cpu") return kernels::CreateCpuBackend();
  absl::StatusOr<std::unique_ptr<kernels::Backend>> cuda = kernels::CreateCudaBackend(
      {.device = static_cast<int>(options.cuda_device),
       .plan = {.choice = *kernels::ParseKernelChoice(options.kernel), .threshold = options.kernel_threshold},
       .cpu_below_tokens = options.cpu_below_tokens,
       .timeout = absl::ToChronoNanoseconds(options.gpu_timeout)});
  if (cuda.ok()) {
    spdlog::info("computing on CUDA device {}: {}", options.cuda_device, (*cuda)->device());
    return cuda;
  }
  const std::string why(cuda.status().message());
  if (options.backend == "cuda") return absl::UnavailableError(absl::StrCat("--backend=cuda: ", why));
  auto cpu = kernels::CreateCpuBackend();
  spdlog::info("computing on the {}: {}", cpu->device(), why);
  return cpu;
}

// So that copies and kernels of different batches overlap.
constexpr int64_t kDeviceLanes = 8;
constexpr int64_t kMostLanes = 64;

int64_t LanesFor(const kernels::Backend& backend) {
  const int64_t cores = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, kMostLanes);
  return backend.kind() == kernels::BackendKind::kCuda ? std::max(kDeviceLanes, cores) : cores;
}

absl::StatusOr<std::vector<std::unique_ptr<kernels::Lane>>> MakeLanes(kernels::Backend& backend,
                                                                      const Options& options) {
  std::vector<std::unique_ptr<kernels::Lane>> lanes;
  for (int64_t i = 0; i < options.lanes; ++i) {
    absl::StatusOr<std::unique_ptr<kernels::Lane>> lane = backend.CreateLane(
        {.max_sequences = options.batch.max_batch_sequences, .max_requests = options.batch.max_batch_requests});
    if (!lane.ok()) return lane.status();
    lanes.push_back(*std::move(lane));
  }
  return lanes;
}

// In which gRPC does what was asked of it before.
constexpr absl::Duration kSettles = absl::Milliseconds(10);

// With two lanes one can be computed while the other one's replies are sent; more made each call's share of a launch
// larger (H100, 64 calls in flight).
constexpr size_t kDeviceSmallBatchLanes = 2;

std::string ServerInfo(kernels::BackendKind backend, const std::string& device, const Options& options) {
  v1::GetServerInfoResponse info;
  info.set_version(kVersion);
  info.set_revision(kRevision);
  info.set_backend(static_cast<v1::Backend>(backend));
  info.set_device(device);
  for (int output = v1::OUTPUT_SEQLENS_EXPANDED; output <= v1::Output_MAX; ++output) {
    info.add_supported_outputs(static_cast<v1::Output>(output));
  }
  info.add_supported_modes(v1::SEQUENCE_MODE_REPEAT);
  info.add_supported_modes(v1::SEQUENCE_MODE_CAUSAL);
  *info.mutable_limits() = ToProto(options);
  return info.SerializeAsString();
}

}  // namespace

// In the order of construction; destroyed in the reverse of it.
struct Server::Parts {
  Options options;
  const absl::Time started = absl::Now();
  std::unique_ptr<kernels::Backend> backend;
  Gauges gauges;
  ProcessMetrics process;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<Trust> trust;
  std::shared_ptr<OutputPool> pool;
  std::unique_ptr<Batcher> batcher;
  Delivered delivered;
  Descriptors descriptors;
  std::unique_ptr<Service> service;
  std::unique_ptr<HealthServer> health;
  std::unique_ptr<ExternalConnectionAcceptor> connections;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Acceptor> acceptor;
  std::atomic<bool> ready{false};
  std::unique_ptr<History> history;
  Mutex status_mutex;
  std::string status_json ABSL_GUARDED_BY(status_mutex);
  TimePoint status_made ABSL_GUARDED_BY(status_mutex);
  std::unique_ptr<MetricsServer> metrics_server;

  // What computes: memory, lanes, and what brings requests to them.
  absl::Status MakeCompute(Surroundings& surroundings);
  Batcher::Options BatcherOptions(Surroundings& surroundings);
  kernels::BackendKind active_backend() const;
  absl::Status Listen();
  absl::Status BuildServer();
  // Takes no new calls, and waits for those in flight, for up to drain_timeout.
  void ShutDownServer();
  // Whether all calls are answered and no new one will be read; else some take longer, and calls are read as before.
  bool StopReading();
  void AddGauges();
  // For the status page, as JSON.
  std::string Status() ABSL_LOCKS_EXCLUDED(status_mutex);
};

Batcher::Options Server::Parts::BatcherOptions(Surroundings& surroundings) {
  const BatchOptions& batch = options.batch;
  // Not where small ones go to the CPU, where each takes a lane's thread and no more.
  const bool on_device = backend->kind() == kernels::BackendKind::kCuda && options.cpu_below_tokens == 0;
  return {.policy = {.max_requests = batch.max_batch_requests,
                     .max_sequences = batch.max_batch_sequences,
                     .max_tokens = batch.max_batch_tokens,
                     .delay = absl::ToChronoNanoseconds(batch.batch_delay)},
          .max_queue_requests = static_cast<size_t>(batch.max_queue_requests),
          .small_batch_lanes = on_device ? kDeviceSmallBatchLanes : SIZE_MAX,
          .caller_share = options.caller_share,
          .device_lost =
              [end = options.on_gpu_fault == "exit" ? std::move(surroundings.end) : nullptr](const absl::Status& why) {
                spdlog::error("the device has failed, the CPU computes from here on{}: {}",
                              end ? " until the server has drained" : "", std::string(why.message()));
                if (end) end();
              },
          .failpoints = surroundings.failpoints};
}

absl::Status Server::Parts::MakeCompute(Surroundings& surroundings) {
  absl::StatusOr<kernels::HostBuffer> memory = backend->AllocateOutput(options.output_budget_bytes);
  if (!memory.ok()) return memory.status();
  OutputPool::Options pool_options = {.spare = std::nullopt, .caller_share = options.caller_share};
  if (backend->kind() == kernels::BackendKind::kCuda) {
    absl::StatusOr<kernels::HostBuffer> spare = kernels::AllocatePageable(options.output_budget_bytes);
    if (!spare.ok()) return spare.status();
    pool_options.spare = *std::move(spare);
  }
  absl::StatusOr<std::shared_ptr<OutputPool>> made = OutputPool::Create(*std::move(memory), std::move(pool_options));
  if (!made.ok()) return made.status();
  pool = *std::move(made);
  absl::StatusOr<std::vector<std::unique_ptr<kernels::Lane>>> lanes = MakeLanes(*backend, options);
  if (!lanes.ok()) return lanes.status();
  batcher =
      std::make_unique<Batcher>(BatcherOptions(surroundings), backend->kind(), *std::move(lanes), *pool, *metrics);
  return absl::OkStatus();
}

kernels::BackendKind Server::Parts::active_backend() const {
  return batcher->device_lost() ? kernels::BackendKind::kCpu : backend->kind();
}

absl::Status Server::Parts::Listen() {
  absl::StatusOr<std::vector<Listener>> listeners = Listener::OpenAll(options.listen);
  if (!listeners.ok()) return listeners.status();
  acceptor = std::make_unique<Acceptor>(
      Acceptor::Options{.max_connections = static_cast<size_t>(options.connection.max_connections),
                        .accepted =
                            [this](int fd, int listener_fd) {
                              descriptors.Set(SlotOf(PeerOf(fd)), fd);
                              HandOver(fd, listener_fd, *connections);
                            },
                        .refused = [this] { metrics->ConnectionRefused(); },
                        .delivered = delivered,
                        .stall_timeout = absl::ToChronoNanoseconds(options.write_stall_timeout),
                        .max_undelivered_bytes = static_cast<uint64_t>(options.connection.max_undelivered_bytes),
                        .ended = [this](ConnectionEnd why, size_t count) { metrics->ConnectionsEnded(why, count); }},
      *std::move(listeners));

  absl::StatusOr<std::unique_ptr<HealthServer>> started =
      HealthServer::Start(*ParseAddress(options.health_listen), *metrics);
  if (!started.ok()) return started.status();
  health = *std::move(started);

  AddGauges();
  history = std::make_unique<History>(
      History::Options(), metrics->collectable(),
      std::vector<History::Gauge>{
          {"Requests in the queue", [this] { return static_cast<double>(batcher->queue_requests()); }},
          {"Lanes at work", [this] { return static_cast<double>(batcher->busy_lanes()); }},
          {"Output blocks in use", [this] { return static_cast<double>(pool->blocks_in_use()); }},
          {"Connections", [this] { return static_cast<double>(acceptor->connections().Sweep()); }}});
  absl::StatusOr<std::unique_ptr<MetricsServer>> http = MetricsServer::Start(
      *ParseAddress(options.metrics_listen), {&metrics->collectable(), &gauges, &process},
      [this] { return ready.load(); }, [this] { return Status(); });
  if (!http.ok()) return http.status();
  metrics_server = *std::move(http);
  return absl::OkStatus();
}

absl::Status Server::Parts::BuildServer() {
  grpc::ServerBuilder builder;
  service->Register(builder);
  SetConnectionArguments(builder, options.connection);
  if (options.reflection) {
    BoundThreads(builder);
  } else {
    builder.SetOption(WithoutReflection());
  }
  connections = AddConnections(builder, trust->credentials());
  server = builder.BuildAndStart();
  if (server == nullptr) return absl::InternalError("gRPC did not start a server");
  return absl::OkStatus();
}

bool Server::Parts::StopReading() {
  constexpr absl::Duration kLongest = absl::Milliseconds(500);
  acceptor->connections().SetReading(false);
  absl::SleepFor(kSettles);  // what was read before is on its way to us
  // A Unix socket can't be held: what comes on one is refused from here on, and once nothing is in flight it is ended.
  // A call that comes then is UNAVAILABLE to its caller too.
  service->RefuseUnix();
  bool answered = false;
  for (absl::Duration waited; waited < kLongest; waited += kSettles) {
    answered = service->live_calls() == 0;
    if (answered && acceptor->connections().ShutDownSentUnix() == 0) return true;
    service->EndStuckWatches();
    absl::SleepFor(kSettles);
  }
  if (answered) return true;  // though somebody on a Unix socket does not read
  // Their answers may need what the callers say, how much they can take.
  acceptor->connections().SetReading(true);
  return false;
}

void Server::Parts::ShutDownServer() {
  // From its shutdown on gRPC answers new calls CANCELLED, which callers seldom try again, until their connection's
  // peer has heard of the GOAWAY. So none is to reach it then: a connection that ends before a call was looked at is
  // UNAVAILABLE to its caller, who goes to another server.
  service->DrainStreams();
  std::atomic<bool> ended{false};
  const bool answered = StopReading();
  if (!answered) spdlog::info("some calls take longer; new ones on their connections may be cancelled");
  std::thread end([this, answered, &ended] {
    absl::SleepFor(kSettles);  // for the GOAWAY to go out
    // One that was on its way here all the time may have come since.
    while (!ended && (service->live_calls() > 0 || (answered && acceptor->connections().ShutDownSent() > 0))) {
      service->EndStuckWatches();
      absl::SleepFor(kSettles);
    }
  });
  server->Shutdown(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(options.drain_timeout));
  ended = true;
  end.join();
}

void Server::Parts::AddGauges() {
  gauges.Add("nsa_metadata_queue_requests", "Requests that wait for a lane.", {},
             [this] { return static_cast<double>(batcher->queue_requests()); });
  gauges.Add("nsa_metadata_lengths_bytes", "Bytes of lengths of requests that are not answered yet.", {},
             [this] { return static_cast<double>(service->lengths().bytes_in_use()); });
  gauges.Add("nsa_metadata_output_blocks", "Blocks of the output pool.", {},
             [this] { return static_cast<double>(pool->blocks()); });
  gauges.Add("nsa_metadata_output_blocks_in_use", "Blocks in use, copies of replies counted as whole blocks.", {},
             [this] { return static_cast<double>(pool->blocks_in_use()); });
  gauges.Add("nsa_metadata_output_blocks_high_water", "The most blocks ever in use.", {},
             [this] { return static_cast<double>(pool->blocks_high_water()); });
  gauges.Add("nsa_metadata_connections", "Open connections.", {},
             [this] { return static_cast<double>(acceptor->connections().Sweep()); });
  gauges.Add("nsa_metadata_undelivered_bytes", "Bytes that connections have sent and no request accounts for.", {},
             [this] { return static_cast<double>(acceptor->connections().undelivered_bytes()); });
  for (kernels::BackendKind kind :
       {kernels::BackendKind::kCuda, kernels::BackendKind::kCpu, kernels::BackendKind::kReference}) {
    gauges.Add("nsa_metadata_backend_active", "1 for what computes the replies.",
               {{"backend", std::string(kernels::BackendName(kind))}},
               [this, kind] { return active_backend() == kind ? 1.0 : 0.0; });
  }
  if (trust->certificate_expiry()) {
    gauges.Add("nsa_metadata_tls_certificate_expiry_timestamp_seconds",
               "When the server's certificate expires, seconds since the epoch.", {},
               [this] { return absl::ToDoubleSeconds(*trust->certificate_expiry() - absl::UnixEpoch()); });
  }
  for (const auto& [what, name] : {std::pair(Reloaded::kCertificates, "nsa_metadata_tls_reload_failed"),
                                   std::pair(Reloaded::kPolicy, "nsa_metadata_policy_reload_failed")}) {
    gauges.Add(name,
               "1 while the files that lie there are broken, or not valid yet, and what was read before is in use.", {},
               [this, what = what] { return metrics->reload_failed(what) ? 1.0 : 0.0; });
  }
  gauges.Add("nsa_metadata_build_info", "1; what this server was built from.",
             {{"version", kVersion}, {"revision", kRevision}, {"cuda", kernels::CudaVersion()}}, [] { return 1.0; });
  for (const auto& [name, value] : NamedLimits(options)) {
    gauges.Add("nsa_metadata_limit", "The server's limits, in bytes, seconds or numbers.", {{"name", name}},
               [value = value] { return value; });
  }
}

std::string Server::Parts::Status() {
  // Those who look at the same time get the same.
  MutexLock lock(&status_mutex);
  const TimePoint now = Clock::now();
  if (!status_json.empty() && now - status_made < std::chrono::seconds(1)) return status_json;
  status_made = now;
  status::v1::Status status;
  status.set_version(kVersion);
  status.set_revision(kRevision);
  status.set_backend(std::string(kernels::BackendName(active_backend())));
  const bool lost = active_backend() != backend->kind();
  status.set_device(lost ? absl::StrCat("in place of ", backend->device(), ", which has failed") : backend->device());
  status.set_ready(ready);
  *status.mutable_started() = google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(started));
  *status.mutable_limits() = ToProto(options);
  history->Describe(status);
  Describe(service->slow_calls(), status);
  return status_json = ToJson(status);
}

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Options& options, Surroundings surroundings) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  if (surroundings.backend == nullptr) {
    absl::StatusOr<std::unique_ptr<kernels::Backend>> backend = MakeBackend(options);
    if (!backend.ok()) return backend.status();
    surroundings.backend = *std::move(backend);
  }
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto parts = std::make_unique<Parts>();
  parts->options = Resolve(options);
  parts->backend = std::move(surroundings.backend);
  if (parts->options.lanes == 0) parts->options.lanes = LanesFor(*parts->backend);
  parts->metrics = std::make_unique<Metrics>();
  absl::StatusOr<std::unique_ptr<Trust>> trust = Trust::Create(options.trust, *parts->metrics);
  if (!trust.ok()) return trust.status();
  parts->trust = *std::move(trust);
  absl::Status computes = parts->MakeCompute(surroundings);
  if (!computes.ok() && options.backend == "auto" && parts->backend->kind() == kernels::BackendKind::kCuda) {
    spdlog::warn("computing on the CPU: {}", std::string(computes.message()));
    parts->backend = kernels::CreateCpuBackend();
    computes = parts->MakeCompute(surroundings);
  }
  if (!computes.ok()) return computes;
  parts->service = std::make_unique<Service>(
      parts->options, *parts->pool, *parts->batcher, *parts->metrics, *parts->trust, parts->delivered,
      parts->descriptors,
      ServerInfos{ServerInfo(parts->backend->kind(), parts->backend->device(), parts->options),
                  ServerInfo(kernels::BackendKind::kCpu, kernels::CreateCpuBackend()->device(), parts->options)});
  if (absl::Status status = parts->Listen(); !status.ok()) return status;
  if (absl::Status status = parts->BuildServer(); !status.ok()) return status;
  parts->service->Start();
  parts->acceptor->Start();
  parts->service->SetServing(true);
  parts->health->SetServing(true);
  parts->ready = true;
  return std::unique_ptr<Server>(new Server(std::move(parts)));
}

Server::~Server() {
  Drain();
  // Its threads may still be on their way out of the last call: they are to be gone before the service is. Scrapes look
  // at it.
  parts_->metrics_server.reset();
  parts_->history.reset();
  parts_->batcher.reset();
}

void Server::Drain() {
  if (!parts_->ready.exchange(false)) return;
  const Options& options = parts_->options;
  parts_->health->SetServing(false);
  parts_->service->SetServing(false);
  if (options.lame_duck > absl::ZeroDuration()) {
    spdlog::info("not ready; serving on for {}", absl::FormatDuration(options.lame_duck));
    absl::SleepFor(options.lame_duck);
  }
  spdlog::info("no new connections; draining for up to {}", absl::FormatDuration(options.drain_timeout));
  parts_->acceptor->EndAccepting();
  parts_->ShutDownServer();
  parts_->acceptor->Stop();
  parts_->service->Stop();
  spdlog::info("drained");
}

std::vector<std::string> Server::listen_addresses() const {
  std::vector<std::string> addresses;
  for (const Listener& listener : parts_->acceptor->listeners()) addresses.push_back(listener.address().ToString());
  return addresses;
}

std::string Server::health_address() const { return parts_->health->address().ToString(); }
std::string Server::metrics_address() const { return parts_->metrics_server->address().ToString(); }
const Options& Server::options() const { return parts_->options; }
int64_t Server::live_calls() const { return parts_->service->live_calls(); }
bool Server::device_lost() const { return parts_->batcher->device_lost(); }
size_t Server::output_blocks_in_use() const { return parts_->pool->blocks_in_use(); }

}  // namespace nsa::metadata::server
