#include "server/inference_statistics.h"

#include <algorithm>

namespace nsa::metadata::server {
namespace {

// Divided by the requests of a batch without much of a rest.
constexpr uint64_t kWhole = uint64_t{1} << 24;

}  // namespace

InferenceStatistics::InferenceStatistics() {
  for (size_t model = 0; model < kNumInferenceModels; ++model) {
    const auto add = [&](const char* name) {
      return counts_.AddCounter(name, "", {{"model", kInferenceModels[model].name}});
    };
    models_[model] = {.successes = add("successes"),
                      .success_ns = add("success_ns"),
                      .failures = add("failures"),
                      .failure_ns = add("failure_ns"),
                      .queue_ns = add("queue_ns"),
                      .input_ns = add("input_ns"),
                      .infer_ns = add("infer_ns"),
                      .output_ns = add("output_ns"),
                      .batch_parts = add("batch_parts")};
  }
  counts_.Seal();
}

void InferenceStatistics::Succeeded(size_t model, const Journey& journey) {
  const Counters& counters = models_[model];
  counts_.Increment(counters.successes);
  counts_.Add(counters.success_ns, journey.parse_ns + journey.admit_ns + journey.queue_ns + journey.pack_ns +
                                       journey.device_ns + journey.frame_ns);
  counts_.Add(counters.queue_ns, journey.queue_ns);
  counts_.Add(counters.input_ns, journey.pack_ns);
  counts_.Add(counters.infer_ns, journey.device_ns);
  counts_.Add(counters.output_ns, journey.frame_ns);
  counts_.Add(counters.batch_parts, kWhole / std::max<uint32_t>(journey.batch_requests, 1));
}

void InferenceStatistics::Failed(size_t model, uint64_t nanoseconds) {
  counts_.Increment(models_[model].failures);
  counts_.Add(models_[model].failure_ns, nanoseconds);
}

inference::ModelStatistics InferenceStatistics::Of(size_t model) const {
  const Counters& counters = models_[model];
  const uint64_t successes = counts_.ValueOf(counters.successes);
  inference::ModelStatistics statistics;
  statistics.set_name(kInferenceModels[model].name);
  statistics.set_version(kModelVersion);
  statistics.set_inference_count(successes);
  statistics.set_execution_count((counts_.ValueOf(counters.batch_parts) + kWhole / 2) / kWhole);
  const auto set = [this](inference::StatisticDuration* duration, uint64_t count, const Counter& nanoseconds) {
    duration->set_count(count);
    duration->set_ns(counts_.ValueOf(nanoseconds));
  };
  inference::InferStatistics& stages = *statistics.mutable_inference_stats();
  set(stages.mutable_success(), successes, counters.success_ns);
  set(stages.mutable_fail(), counts_.ValueOf(counters.failures), counters.failure_ns);
  set(stages.mutable_queue(), successes, counters.queue_ns);
  set(stages.mutable_compute_input(), successes, counters.input_ns);
  set(stages.mutable_compute_infer(), successes, counters.infer_ns);
  set(stages.mutable_compute_output(), successes, counters.output_ns);
  return statistics;
}

}  // namespace nsa::metadata::server
