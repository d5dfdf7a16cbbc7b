// What callers by the Open Inference Protocol see: a model for each mode.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

#include "inference/inference.pb.h"
#include "kernels/outputs.h"
#include "server/refusal.h"

namespace nsa::metadata::server {

struct InferenceModel {
  const char* name;
  kernels::SequenceMode mode;
};
inline constexpr size_t kNumInferenceModels = 2;
inline constexpr std::array<InferenceModel, kNumInferenceModels> kInferenceModels = {
    {{"nsa_metadata", kernels::SequenceMode::kRepeat}, {"nsa_metadata_causal", kernels::SequenceMode::kCausal}}};
// Of each.
inline constexpr char kModelVersion[] = "1";
inline constexpr char kTensorType[] = "INT32";

enum class InferenceInput : uint8_t { kExtendSeqLens, kSeqLens, kNsaIndexTopk };
inline constexpr std::array<const char*, 3> kInferenceInputs = {"extend_seq_lens", "seq_lens", "nsa_index_topk"};

// The place of a model in kInferenceModels; an empty version means the only one.
std::optional<size_t> FindModel(std::string_view name, std::string_view version);
// Why there is none: NOT_FOUND.
Refusal NoSuchModel(std::string_view name, std::string_view version);
// A name that a caller made up, for a message: short and printable.
std::string Shown(std::string_view name);

// Answers, but for what changes.
inference::ServerMetadataResponse ServerMetadata();
inference::ModelMetadataResponse ModelMetadata(size_t model);
inference::ModelConfigResponse ModelConfig(size_t model);

}  // namespace nsa::metadata::server
