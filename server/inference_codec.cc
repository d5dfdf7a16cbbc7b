#include "server/inference_codec.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/measure.h"
#include "server/inference_models.h"

namespace nsa::metadata::server {
namespace {

using kernels::Output;
using Check = std::optional<Refusal>;
using Request = inference::ModelInferRequest;
using Tensor = inference::ModelInferRequest::InferInputTensor;

// It comes back in the answer.
constexpr size_t kMostIdBytes = 1024;
// More than any max_rpc_duration.
constexpr int64_t kMostMicroseconds = int64_t{365} * 24 * 3600 * 1'000'000;

Refusal BadTensor(const std::string& what, std::string field, int64_t value, int64_t limit) {
  return Invalid(v1::REFUSAL_REASON_BAD_TENSOR, what, std::move(field), value, limit);
}

Check CheckId(const Request& request) {
  const size_t bytes = request.id().size();
  if (bytes <= kMostIdBytes) return std::nullopt;
  return Invalid(v1::REFUSAL_REASON_MALFORMED, absl::StrCat("id has ", bytes, " bytes, more than ", kMostIdBytes), "id",
                 static_cast<int64_t>(bytes), kMostIdBytes);
}

Check ReadTimeout(const Request& request, Clock::duration* timeout) {
  const auto parameter = request.parameters().find("timeout");
  if (parameter == request.parameters().end()) return std::nullopt;
  int64_t microseconds = 0;
  switch (parameter->second.parameter_choice_case()) {
    case inference::InferParameter::kInt64Param:
      microseconds = parameter->second.int64_param();
      break;
    case inference::InferParameter::kUint64Param:
      microseconds = static_cast<int64_t>(std::min<uint64_t>(parameter->second.uint64_param(), kMostMicroseconds));
      break;
    default:
      return Invalid(v1::REFUSAL_REASON_MALFORMED, "parameters[timeout] is no whole number of microseconds",
                     "parameters[timeout]", 0, 0);
  }
  if (microseconds < 0) {
    return Invalid(v1::REFUSAL_REASON_MALFORMED,
                   absl::StrCat("parameters[timeout] is ", microseconds, " microseconds, less than 0"),
                   "parameters[timeout]", microseconds, 0);
  }
  *timeout = std::chrono::microseconds(std::min(microseconds, kMostMicroseconds));
  return std::nullopt;
}

// One input's values, where they are.
Check ReadTensor(const Request& request, int index, std::span<const int32_t>* values) {
  const Tensor& tensor = request.inputs(index);
  const std::string& name = tensor.name();  // a known one
  if (tensor.datatype() != kTensorType) {
    return BadTensor(absl::StrCat(name, " has datatype ", Shown(tensor.datatype()), ", want ", kTensorType), name, 0,
                     0);
  }
  if (tensor.shape_size() != 1 || tensor.shape(0) < 0) {
    return BadTensor(
        absl::StrCat(name, " has ", tensor.shape_size(), " dimensions",
                     tensor.shape_size() == 1 ? absl::StrCat(" of ", tensor.shape(0)) : "", ", want 1 of 0 or more"),
        name, tensor.shape_size(), 1);
  }
  const int64_t size = tensor.shape(0);
  if (request.raw_input_contents_size() == 0) {
    if (tensor.contents().int_contents_size() != size) {
      return BadTensor(absl::StrCat(name, " has ", tensor.contents().int_contents_size(),
                                    " values in int_contents, and no raw_input_contents, for a shape of ", size),
                       name, tensor.contents().int_contents_size(), size);
    }
    *values = {tensor.contents().int_contents().data(), static_cast<size_t>(size)};
    return std::nullopt;
  }
  const std::string& raw = request.raw_input_contents(index);
  const int64_t raw_bytes = static_cast<int64_t>(raw.size());
  if (raw_bytes % static_cast<int64_t>(sizeof(int32_t)) != 0 ||
      raw_bytes / static_cast<int64_t>(sizeof(int32_t)) != size) {
    return BadTensor(absl::StrCat(name, " has ", raw_bytes, " bytes of raw_input_contents for a shape of ", size,
                                  " values of ", sizeof(int32_t)),
                     name, raw_bytes, size);
  }
  // A string's memory, its own or the heap's, is aligned for these.
  *values = {reinterpret_cast<const int32_t*>(raw.data()), static_cast<size_t>(size)};
  return std::nullopt;
}

Check ReadInputs(const Request& request, Expansion* expansion) {
  const int raw = request.raw_input_contents_size();
  if (raw != 0 && raw != request.inputs_size()) {
    return BadTensor(absl::StrCat("raw_input_contents has ", raw, " entries, inputs has ", request.inputs_size()),
                     "raw_input_contents", raw, request.inputs_size());
  }
  std::array<std::optional<std::span<const int32_t>>, kInferenceInputs.size()> read;
  for (int i = 0; i < request.inputs_size(); ++i) {
    const std::string& name = request.inputs(i).name();
    const auto known = std::find(kInferenceInputs.begin(), kInferenceInputs.end(), name);
    if (known == kInferenceInputs.end()) {
      return Invalid(v1::REFUSAL_REASON_UNKNOWN_NAME, absl::StrCat("there is no input ", Shown(name)),
                     absl::StrCat("inputs[", i, "].name"), 0, 0);
    }
    std::optional<std::span<const int32_t>>& values = read[static_cast<size_t>(known - kInferenceInputs.begin())];
    if (values) return BadTensor(absl::StrCat("the input ", name, " is there twice"), name, 2, 1);
    if (Check refusal = ReadTensor(request, i, &values.emplace())) return refusal;
  }
  for (size_t i = 0; i < read.size(); ++i) {
    const bool optional = static_cast<InferenceInput>(i) == InferenceInput::kNsaIndexTopk;
    if (!read[i] && !optional) {
      return BadTensor(absl::StrCat("the input ", kInferenceInputs[i], " is missing"), kInferenceInputs[i], 0, 1);
    }
  }
  expansion->extend_seq_lens = *read[static_cast<size_t>(InferenceInput::kExtendSeqLens)];
  expansion->seq_lens = *read[static_cast<size_t>(InferenceInput::kSeqLens)];
  if (const auto& top_k = read[static_cast<size_t>(InferenceInput::kNsaIndexTopk)]) {
    if (top_k->size() != 1) {
      const auto size = static_cast<int64_t>(top_k->size());
      return BadTensor(absl::StrCat("nsa_index_topk has ", size, " values, want 1"), "nsa_index_topk", size, 1);
    }
    expansion->spec.nsa_index_topk = top_k->front();
  }
  return std::nullopt;
}

Check ReadOutputs(const Request& request, kernels::RequestSpec* spec) {
  for (int i = 0; i < request.outputs_size(); ++i) {
    const std::string& name = request.outputs(i).name();
    const auto known =
        std::ranges::find_if(kernels::kAllOutputs, [&](Output output) { return name == kernels::OutputName(output); });
    if (known == kernels::kAllOutputs.end()) {
      return Invalid(v1::REFUSAL_REASON_UNKNOWN_NAME, absl::StrCat("there is no output ", Shown(name)),
                     absl::StrCat("outputs[", i, "].name"), 0, 0);
    }
    spec->outputs.Add(*known);
  }
  // As the protocol has it.
  if (spec->outputs.empty()) spec->outputs = kernels::OutputSet::All();
  return std::nullopt;
}

// The answer without its values.
std::string Head(const Request& request, size_t model, const Expansion& expansion, int64_t total_tokens) {
  inference::ModelInferResponse head;
  head.set_model_name(kInferenceModels[model].name);
  head.set_model_version(kModelVersion);
  head.set_id(request.id());
  const auto num_sequences = static_cast<int64_t>(expansion.seq_lens.size());
  expansion.spec.outputs.ForEach([&](Output output) {
    inference::ModelInferResponse::InferOutputTensor& tensor = *head.add_outputs();
    tensor.set_name(kernels::OutputName(output));
    tensor.set_datatype(kTensorType);
    tensor.add_shape(kernels::OutputLength(output, num_sequences, total_tokens));
  });
  return head.SerializeAsString();
}

}  // namespace

std::optional<Refusal> Validate(const inference::ModelInferRequest& request, const RequestLimits& limits,
                                Expansion* expansion, InferenceRequest* inference) {
  inference->model = FindModel(request.model_name(), request.model_version());
  if (!inference->model) return NoSuchModel(request.model_name(), request.model_version());
  if (Check refusal = CheckId(request)) return refusal;
  if (Check refusal = ReadTimeout(request, &inference->timeout)) return refusal;
  expansion->spec.mode = kInferenceModels[*inference->model].mode;
  if (Check refusal = ReadInputs(request, expansion)) return refusal;
  if (Check refusal = CheckLengths(*expansion, limits)) return refusal;
  if (Check refusal = ReadOutputs(request, &expansion->spec)) return refusal;
  const int64_t total_tokens = kernels::Sum(expansion->extend_seq_lens);
  return Measure(limits, Framing::kInference, Head(request, *inference->model, *expansion, total_tokens), expansion);
}

}  // namespace nsa::metadata::server
