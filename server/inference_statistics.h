// What became of each model's requests, for the Open Inference Protocol's ModelStatistics.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "inference/inference.pb.h"
#include "server/inference_models.h"
#include "server/journey.h"
#include "server/sharded_metrics.h"

namespace nsa::metadata::server {

// Thread-safe; nothing here blocks.
class InferenceStatistics {
 public:
  InferenceStatistics();

  void Succeeded(size_t model, const Journey& journey);
  // After so long.
  void Failed(size_t model, uint64_t nanoseconds);
  inference::ModelStatistics Of(size_t model) const;

 private:
  using Counter = ShardedMetrics::Counter;
  struct Counters {
    Counter successes;
    Counter success_ns;
    Counter failures;
    Counter failure_ns;
    Counter queue_ns;
    Counter input_ns;
    Counter infer_ns;
    Counter output_ns;
    // Each request's part of its batch, of kWhole.
    Counter batch_parts;
  };

  // Not exported: /metrics has the same by stages.
  ShardedMetrics counts_;
  std::array<Counters, kNumInferenceModels> models_;
};

}  // namespace nsa::metadata::server
