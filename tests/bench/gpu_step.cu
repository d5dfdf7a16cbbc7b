// gpu_step: what the step on the card takes, beside what it can't be quicker than. One JSON object a line; medians, the
// things compared measured in turn. See gpu_report.py.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/draft_extend_metadata.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/lay_out.h"
#include "tests/bench/founding_kernels.cuh"

#define CHECK_CUDA(call)                                                                  \
  do {                                                                                    \
    if (const cudaError_t error = (call); error != cudaSuccess) {                         \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)); \
      std::exit(EXIT_FAILURE);                                                            \
    }                                                                                     \
  } while (false)

namespace nsa::metadata::bench {
namespace {

using kernels::Kernel;
using kernels::KernelChoice;
using kernels::Output;
using kernels::OutputSet;
using Clock = std::chrono::steady_clock;

constexpr int kRounds = 9;
constexpr int64_t kMostTokens = 16 << 20;
constexpr int32_t kTopK = 2048;
constexpr OutputSet kTwo = {Output::kSeqlensExpanded, Output::kNsaCacheSeqlens};

double Microseconds(Clock::duration took) { return std::chrono::duration<double, std::micro>(took).count(); }

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The median time of one of `run`, each timed by itself.
double TimeEach(const std::function<void()>& run, int times) {
  std::vector<double> took;
  for (int i = 0; i < times; ++i) {
    const Clock::time_point begin = Clock::now();
    run();
    took.push_back(Microseconds(Clock::now() - begin));
  }
  return Median(std::move(took));
}

struct Subject {
  std::string name;
  std::function<double(int)> time;  // the median of so many
};

// Each subject's median over rounds in which all take their turn.
std::vector<double> InTurn(const std::vector<Subject>& subjects, double budget_us) {
  std::vector<std::vector<double>> rounds(subjects.size());
  std::vector<int> times(subjects.size());
  for (int round = 0; round < kRounds + 1; ++round) {
    for (size_t i = 0; i < subjects.size(); ++i) {
      if (round == 0) {  // warms up, and says how many fit
        times[i] = std::clamp(static_cast<int>(budget_us / std::max(subjects[i].time(3), 0.5)), 3, 300);
      } else {
        rounds[i].push_back(subjects[i].time(times[i]));
      }
    }
  }
  std::vector<double> medians;
  for (auto& values : rounds) medians.push_back(Median(std::move(values)));
  return medians;
}

void Print(const std::string& section, const std::string& fields, const std::vector<Subject>& subjects,
           const std::vector<double>& medians) {
  std::vector<std::string> values;
  for (size_t i = 0; i < subjects.size(); ++i) {
    values.push_back(absl::StrCat("\"", subjects[i].name, "\":", medians[i]));
  }
  std::printf("{\"section\":\"%s\",%s%s\"us\":{%s}}\n", section.c_str(), fields.c_str(), fields.empty() ? "" : ",",
              absl::StrJoin(values, ",").c_str());
  std::fflush(stdout);
}

kernels::cuda::Stream NewStream() {
  cudaStream_t stream = nullptr;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return kernels::cuda::Stream(stream);
}

// Memory that lasts as long as the process.
template <typename T>
T* OnDevice(size_t count) {
  void* memory = nullptr;
  CHECK_CUDA(cudaMalloc(&memory, count * sizeof(T)));
  CHECK_CUDA(cudaMemset(memory, 0, count * sizeof(T)));
  return static_cast<T*>(memory);
}
template <typename T>
T* Pinned(size_t count) {
  void* memory = nullptr;
  CHECK_CUDA(cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocMapped));
  return static_cast<T*>(memory);
}

__global__ void Empty() {}
__global__ void SetFlag(uint64_t* flag, uint64_t value) { *reinterpret_cast<volatile uint64_t*>(flag) = value; }
__global__ void Fill(uint4* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = {1, 2, 3, 4};
}

// The floor of a launch whose end the host sees.
std::vector<Subject> Floors(cudaStream_t stream) {
  static uint64_t value = 0;
  static auto* const flag = Pinned<uint64_t>(1);
  return {{"empty_and_sync",
           [stream](int times) {
             return TimeEach(
                 [stream] {
                   Empty<<<1, 32, 0, stream>>>();
                   CHECK_CUDA(cudaStreamSynchronize(stream));
                 },
                 times);
           }},
          {"flag", [stream](int times) {
             return TimeEach(
                 [stream] {
                   SetFlag<<<1, 1, 0, stream>>>(flag, ++value);
                   while (std::atomic_ref(*flag).load(std::memory_order_acquire) != value) {
                   }
                 },
                 times);
           }}};
}

struct Shape {
  int64_t num_sequences;
  int64_t mean;
};

struct Lengths {
  std::vector<int32_t> q;
  std::vector<int32_t> s;
  int64_t total_tokens = 0;
};

Lengths Draw(const Shape& shape) {
  std::mt19937_64 random(shape.num_sequences * 31 + shape.mean);
  Lengths lengths;
  for (int64_t b = 0; b < shape.num_sequences; ++b) {
    const auto q = static_cast<int32_t>(1 + random() % (2 * shape.mean - 1));
    lengths.q.push_back(q);
    lengths.s.push_back(q + static_cast<int32_t>(random() % 8192));
    lengths.total_tokens += q;
  }
  return lengths;
}

// Where each output begins, in values, in memory for all of them.
kernels::OutputPointers Pointers(OutputSet outputs, const Lengths& lengths, int32_t* base) {
  kernels::OutputPointers out = {};
  outputs.ForEach([&](Output output) {
    out[static_cast<size_t>(output)] = base;
    const int64_t length = kernels::OutputLength(output, static_cast<int64_t>(lengths.q.size()), lengths.total_tokens);
    base += (length + 64) / 32 * 32;
  });
  return out;
}

std::string Fields(const Shape& shape, const Lengths& lengths, OutputSet outputs) {
  return absl::StrCat("\"num_sequences\":", shape.num_sequences, ",\"mean\":", shape.mean,
                      ",\"tokens\":", lengths.total_tokens, ",\"outputs\":", outputs == kTwo ? 2 : 9);
}

// Powers of 4 times `first`: with 1 what the plan's table has entries for, with 2 what lies between these.
std::vector<Shape> Grid(int64_t first = 1) {
  std::vector<Shape> grid;
  for (int64_t num_sequences = first; num_sequences <= 65'536; num_sequences *= 4) {
    for (int64_t mean = first; mean <= 16'384; mean *= 4) {
      if (num_sequences * mean <= kMostTokens) grid.push_back({num_sequences, mean});
    }
  }
  return grid;
}

// Room for every shape's outputs, with the padding between them.
constexpr size_t kMostValues = 9 * (kMostTokens * 5 / 4 + 65'536 + 128);

constexpr std::pair<const char*, KernelChoice> kChoices[] = {{"linear", KernelChoice::kLinear},
                                                             {"binary", KernelChoice::kBinary},
                                                             {"rows", KernelChoice::kRows},
                                                             {"tile", KernelChoice::kTile},
                                                             {"plan", KernelChoice::kAdaptive}};

// Linear search takes seconds for many sequences.
bool TooSlow(KernelChoice choice, const Lengths& lengths) {
  return choice == KernelChoice::kLinear &&
         static_cast<double>(lengths.q.size()) * static_cast<double>(lengths.total_tokens) > 1e9;
}

struct NamedPlan {
  std::string name;
  kernels::LaunchPlan plan;
};

// Every kernel with every way in, and what is chosen of them.
std::vector<NamedPlan> Plans() {
  std::vector<NamedPlan> plans;
  for (const auto& [name, choice] : kChoices) {
    if (choice == KernelChoice::kAdaptive) {
      plans.push_back({name, {.choice = choice}});
      continue;
    }
    for (const auto& [way, input] :
         {std::pair("inline", kernels::Input::kInline), {"copied", kernels::Input::kCopied}}) {
      plans.push_back({absl::StrCat(name, "_", way), {.choice = choice, .input = input}});
    }
  }
  return plans;
}

class HostToHost {
 public:
  explicit HostToHost(int32_t* out) : out_(out), stream_(NewStream()) {
    for (const auto& [name, plan] : plans_) {
      auto backend = kernels::CreateCudaBackend({.device = 0, .plan = plan});
      if (!backend.ok()) std::exit(EXIT_FAILURE);
      Add(*std::move(backend));
    }
    Add(kernels::CreateCpuBackend());
  }

  void Run(const Shape& shape, OutputSet outputs) {
    const Lengths lengths = Draw(shape);
    const kernels::OutputPointers out = Pointers(outputs, lengths, out_);
    std::vector<Subject> subjects = Floors(stream_.get());
    for (size_t i = 0; i < lanes_.size(); ++i) {
      const bool cpu = i == plans_.size();
      if (!cpu && TooSlow(plans_[i].plan.choice, lengths)) continue;
      subjects.push_back({cpu ? "cpu" : plans_[i].name, [this, i, &lengths, &out, outputs](int times) {
                            return TimeEach([&] { Expand(*lanes_[i], lengths, outputs, out); }, times);
                          }});
    }
    Print("host_to_host", Fields(shape, lengths, outputs), subjects, InTurn(subjects, 1'000));
  }

 private:
  void Add(std::unique_ptr<kernels::Backend> backend) {
    lanes_.push_back(*backend->CreateLane({.max_sequences = 65'536, .max_requests = 64}));
    backends_.push_back(std::move(backend));
  }

  static void Expand(kernels::Lane& lane, const Lengths& lengths, OutputSet outputs,
                     const kernels::OutputPointers& out) {
    lane.batch().Clear();
    lane.batch().Add({.nsa_index_topk = kTopK, .mode = kernels::SequenceMode::kCausal, .outputs = outputs}, lengths.q,
                     lengths.s, lengths.total_tokens, out);
    if (!lane.Expand().ok()) std::exit(EXIT_FAILURE);
  }

  const std::vector<NamedPlan> plans_ = Plans();
  int32_t* out_;
  kernels::cuda::Stream stream_;
  std::vector<std::unique_ptr<kernels::Backend>> backends_;
  std::vector<std::unique_ptr<kernels::Lane>> lanes_;
};

kernels::BatchShape ShapeOf(const kernels::cuda::BatchSize& size) {
  return {.num_sequences = size.num_sequences, .total_tokens = size.num_tokens, .first_two = size.first_two};
}

// A graph of many launches; the time of one.
class Graph {
 public:
  Graph(cudaStream_t stream, int launches, const std::function<cudaError_t()>& launch)
      : stream_(stream), launches_(launches) {
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; ++i) CHECK_CUDA(launch());
    cudaGraph_t graph = nullptr;
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&graph_, graph, 0));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaEventCreate(&begin_));
    CHECK_CUDA(cudaEventCreate(&end_));
  }
  ~Graph() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaGraphExecDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  double Time(int times) {
    std::vector<double> took;
    for (int i = 0; i < std::max(times / 10, 1); ++i) {
      CHECK_CUDA(cudaEventRecord(begin_, stream_));
      CHECK_CUDA(cudaGraphLaunch(graph_, stream_));
      CHECK_CUDA(cudaEventRecord(end_, stream_));
      CHECK_CUDA(cudaStreamSynchronize(stream_));
      float ms = 0;
      CHECK_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
      took.push_back(1e3 * ms / launches_);
    }
    return Median(std::move(took));
  }

 private:
  cudaStream_t stream_;
  int launches_;
  cudaGraphExec_t graph_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

class DeviceToDevice {
 public:
  explicit DeviceToDevice(int32_t* out) : out_(out), stream_(NewStream()) {}

  // The kernels alone, over a batch that is on the device.
  void Run(const Shape& shape, OutputSet outputs, const std::string& section = "device_to_device") {
    const Lengths lengths = Draw(shape);
    const kernels::cuda::BatchSize size = LaidOut(lengths, outputs);
    std::vector<std::unique_ptr<Graph>> graphs;
    std::vector<Subject> subjects;
    const int launches = lengths.total_tokens > 1 << 20 ? 5 : 50;
    const auto add = [&](const std::string& name, const std::function<cudaError_t()>& launch) {
      graphs.push_back(std::make_unique<Graph>(stream_.get(), launches, launch));
      subjects.push_back({name, [graph = graphs.back().get()](int times) { return graph->Time(times); }});
    };
    for (const auto& [name, choice] : kChoices) {
      if (TooSlow(choice, lengths)) continue;
      const Kernel kernel = kernels::ChooseKernel({.choice = choice}, ShapeOf(size));
      add(name, [&, kernel] { return kernels::cuda::LaunchStaged(kernel, size, data_, {}, stream_.get()); });
    }
    add("write", [&] { return Write(lengths, outputs); });
    const std::string fields =
        absl::StrCat(Fields(shape, lengths, outputs), ",\"choice\":\"",
                     std::string(kernels::KernelName(kernels::ChooseKernel({}, ShapeOf(size)))), "\"");
    Print(section, fields, subjects, InTurn(subjects, 500));
  }

  // From lengths that are on the device, beside the founding kernels: launched, and waited for, by each as it offers;
  // and with the same synchronisation for both.
  void FromLengths(const Shape& shape) {
    const Lengths lengths = Draw(shape);
    const auto n = static_cast<int32_t>(shape.num_sequences);
    const kernels::cuda::DraftExtendMetadata metadata = Copied(lengths);
    const kernels::OutputPointers& out = metadata.out;
    const founding::Arrays arrays = {.extend_seq_lens = q_,
                                     .seq_lens = s_,
                                     .num_sequences = n,
                                     .total_tokens = static_cast<int32_t>(lengths.total_tokens),
                                     .nsa_index_topk = kTopK,
                                     .seqlens_expanded = out[0],
                                     .nsa_cache_seqlens = out[1],
                                     .ends = ends_,
                                     .scratch = scratch_,
                                     .scratch_bytes = founding::ScratchBytes(n)};
    const Kernel kernel = kernels::cuda::ChooseKernel(metadata, {});
    const auto subject = [this](const char* name, const std::function<cudaError_t()>& launch) {
      return Subject{name, [this, launch](int times) {
                       return TimeEach(
                           [&] {
                             CHECK_CUDA(launch());
                             CHECK_CUDA(cudaStreamSynchronize(stream_.get()));
                           },
                           times);
                     }};
    };
    const auto ours = [&] { return kernels::cuda::LaunchDraftExtendMetadata(metadata, kernel, stream_.get()); };
    const auto theirs = [&] { return founding::LaunchAdaptive(arrays, stream_.get()); };
    std::vector<Subject> subjects = {{"plan", [&](int times) { return TimeFill(metadata, times); }},
                                     subject("plan_and_synchronize", ours),
                                     subject("founding", theirs)};
    const int launches = lengths.total_tokens > 1 << 20 ? 5 : 50;
    Graph our_graph(stream_.get(), launches, ours);
    Graph their_graph(stream_.get(), launches, theirs);
    subjects.push_back({"plan_in_graph", [&](int times) { return our_graph.Time(times); }});
    subjects.push_back({"founding_in_graph", [&](int times) { return their_graph.Time(times); }});
    for (Kernel each : {Kernel::kBinary, Kernel::kRows, Kernel::kTile}) {
      subjects.push_back(subject(kernels::KernelName(each).data(), [&, each] {
        return kernels::cuda::LaunchDraftExtendMetadata(metadata, each, stream_.get());
      }));
    }
    Print("from_lengths", Fields(shape, lengths, kTwo), subjects, InTurn(subjects, 1'000));
  }

  // One launch of what the plan takes, and a write of as many bytes, for a profiler to count.
  void LaunchOnce(const Shape& shape, OutputSet outputs) {
    const Lengths lengths = Draw(shape);
    const kernels::cuda::BatchSize size = LaidOut(lengths, outputs);
    const Kernel kernel = kernels::ChooseKernel({}, ShapeOf(size));
    CHECK_CUDA(kernels::cuda::LaunchStaged(kernel, size, data_, {}, stream_.get()));
    CHECK_CUDA(Write(lengths, outputs));
    CHECK_CUDA(cudaStreamSynchronize(stream_.get()));
  }

  // FillDraftExtendMetadataAdaptive alone, in microseconds.
  double FillAlone(const Shape& shape) { return TimeFill(Copied(Draw(shape)), 200); }

 private:
  // Copies a batch in its layout to the device.
  kernels::cuda::BatchSize LaidOut(const Lengths& lengths, OutputSet outputs) {
    kernels::RequestBatch batch(static_cast<int64_t>(lengths.q.size()), 1);
    batch.Add({.nsa_index_topk = kTopK, .mode = kernels::SequenceMode::kCausal, .outputs = outputs}, lengths.q,
              lengths.s, lengths.total_tokens, Pointers(outputs, lengths, out_));
    const kernels::cuda::BatchSize size = *kernels::cuda::SizeOf(batch);
    std::vector<uint64_t> laid_out((kernels::cuda::BatchLayout(size).bytes + 7) / 8);
    kernels::cuda::LayOut(batch, size, reinterpret_cast<unsigned char*>(laid_out.data()));
    CHECK_CUDA(cudaMemcpy(data_, laid_out.data(), laid_out.size() * sizeof(uint64_t), cudaMemcpyHostToDevice));
    return size;
  }
  // As many bytes as the outputs that have a value a token.
  cudaError_t Write(const Lengths& lengths, OutputSet outputs) {
    const int64_t bytes = lengths.total_tokens * (outputs == kTwo ? 8 : 28);
    const int64_t pieces = (bytes + 15) / 16;
    Fill<<<static_cast<unsigned>((pieces + 255) / 256), 256, 0, stream_.get()>>>(reinterpret_cast<uint4*>(out_),
                                                                                 pieces);
    return cudaGetLastError();
  }
  kernels::cuda::DraftExtendMetadata Copied(const Lengths& lengths) {
    CHECK_CUDA(cudaMemcpy(q_, lengths.q.data(), lengths.q.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaMemcpy(s_, lengths.s.data(), lengths.s.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    return {.extend_seq_lens = q_,
            .seq_lens = s_,
            .num_sequences = static_cast<int64_t>(lengths.q.size()),
            .nsa_index_topk = kTopK,
            .mode = kernels::SequenceMode::kRepeat,
            .out = Pointers(kTwo, lengths, out_),
            .capacity = lengths.total_tokens,
            .workspace = workspace_};
  }
  double TimeFill(const kernels::cuda::DraftExtendMetadata& metadata, int times) {
    return TimeEach(
        [&] {
          int64_t total_tokens = 0;
          CHECK_CUDA(
              kernels::cuda::FillDraftExtendMetadataAdaptive(metadata, stream_.get(), fill_workspace_, &total_tokens));
        },
        times);
  }

  int32_t* out_;
  kernels::cuda::Stream stream_;
  unsigned char* data_ = OnDevice<unsigned char>(4 << 20);
  int32_t* q_ = OnDevice<int32_t>(65'536);
  int32_t* s_ = OnDevice<int32_t>(65'536);
  int32_t* ends_ = OnDevice<int32_t>(65'536);
  void* scratch_ = OnDevice<unsigned char>(1 << 20);
  void* workspace_ = OnDevice<unsigned char>(8 << 20);
  kernels::cuda::FillWorkspace fill_workspace_;
};

void Bandwidths(int32_t* on_device, int32_t* pinned) {
  const kernels::cuda::Stream stream = NewStream();
  for (const size_t bytes :
       {size_t{128} << 10, size_t{1} << 20, size_t{8} << 20, size_t{32} << 20, size_t{128} << 20}) {
    const auto copy = [&](const char* name, void* to, const void* from, cudaMemcpyKind kind) {
      return Subject{name, [&stream, to, from, kind, bytes](int times) {
                       return TimeEach(
                           [&] {
                             CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, kind, stream.get()));
                             CHECK_CUDA(cudaStreamSynchronize(stream.get()));
                           },
                           times);
                     }};
    };
    const std::vector<Subject> subjects = {
        copy("device_to_host", pinned, on_device, cudaMemcpyDeviceToHost),
        copy("device_to_device", on_device + bytes / 4, on_device, cudaMemcpyDeviceToDevice)};
    Print("bandwidth", absl::StrCat("\"bytes\":", bytes), subjects, InTurn(subjects, 5'000));
  }
}

// Batches a second of 64 sequences, 1,024 tokens, by so many lanes, a thread each.
void Lanes() {
  auto backend = *kernels::CreateCudaBackend({});
  const Lengths lengths = Draw({64, 16});
  constexpr int kMostLanes = 8;
  std::vector<std::unique_ptr<kernels::Lane>> lanes;
  std::vector<kernels::HostBuffer> memory;
  for (int i = 0; i < kMostLanes; ++i) {
    lanes.push_back(*backend->CreateLane({.max_sequences = 1'024, .max_requests = 64}));
    memory.push_back(*backend->AllocateOutput(1 << 20));
  }
  std::vector<std::vector<double>> rates(kMostLanes + 1);
  for (int round = 0; round < kRounds; ++round) {
    for (const int count : {1, 2, 4, 8}) {
      std::atomic<bool> stop{false};
      std::atomic<int64_t> batches{0};
      std::vector<std::thread> threads;
      const Clock::time_point begin = Clock::now();
      for (int i = 0; i < count; ++i) {
        threads.emplace_back([&, i] {
          const kernels::OutputPointers out = Pointers(kTwo, lengths, reinterpret_cast<int32_t*>(memory[i].data()));
          int64_t done = 0;
          for (; !stop.load(std::memory_order_relaxed); ++done) {
            lanes[i]->batch().Clear();
            lanes[i]->batch().Add({.nsa_index_topk = kTopK, .outputs = kTwo}, lengths.q, lengths.s,
                                  lengths.total_tokens, out);
            if (!lanes[i]->Expand().ok()) std::exit(EXIT_FAILURE);
          }
          batches += done;
        });
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      stop = true;
      for (std::thread& thread : threads) thread.join();
      rates[count].push_back(1e6 * static_cast<double>(batches) / Microseconds(Clock::now() - begin));
    }
  }
  for (const int count : {1, 2, 4, 8}) {
    std::printf("{\"section\":\"lanes\",\"lanes\":%d,\"batches_per_s\":%.0f}\n", count, Median(rates[count]));
  }
}

int Main(const std::string& part) {
  cudaDeviceProp device;
  CHECK_CUDA(cudaGetDeviceProperties(&device, 0));
  std::printf("{\"section\":\"card\",\"name\":\"%s\"}\n", device.name);
  auto* const on_device = OnDevice<int32_t>(kMostValues);
  auto* const pinned = Pinned<int32_t>(kMostValues);
  const bool all = part == "all";
  if (part == "fill") {  // for whoever measures beside it: a shape a line
    DeviceToDevice device_to_device(on_device);
    for (Shape shape = {}; std::scanf("%" SCNd64 " %" SCNd64, &shape.num_sequences, &shape.mean) == 2;) {
      std::printf("%.3f\n", device_to_device.FillAlone(shape));
      std::fflush(stdout);
    }
    return EXIT_SUCCESS;
  }
  if (part == "once") {  // a shape and its outputs, 2 or 9, a line
    DeviceToDevice device_to_device(on_device);
    int outputs = 0;
    for (Shape shape = {};
         std::scanf("%" SCNd64 " %" SCNd64 " %d", &shape.num_sequences, &shape.mean, &outputs) == 3;) {
      device_to_device.LaunchOnce(shape, outputs == 2 ? kTwo : OutputSet::All());
    }
    return EXIT_SUCCESS;
  }
  if (all || part == "bandwidth") Bandwidths(on_device, pinned);
  if (all || part == "lanes") Lanes();
  if (all || part == "host") {
    HostToHost host(pinned);
    for (const Shape& shape : Grid()) {
      for (const OutputSet outputs : {kTwo, OutputSet::All()}) host.Run(shape, outputs);
    }
  }
  if (all || part == "device") {
    DeviceToDevice device_to_device(on_device);
    for (const Shape& shape : Grid()) {
      for (const OutputSet outputs : {kTwo, OutputSet::All()}) device_to_device.Run(shape, outputs);
      device_to_device.FromLengths(shape);
    }
    for (const Shape& shape : Grid(2)) device_to_device.Run(shape, kTwo, "between");
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace nsa::metadata::bench

int main(int argc, char** argv) { return nsa::metadata::bench::Main(argc > 1 ? argv[1] : "all"); }
