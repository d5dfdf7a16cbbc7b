#include "server/inference_models.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/version.h"

namespace nsa::metadata::server {
namespace {

using kernels::Output;

int64_t SizeOf(InferenceInput input) { return input == InferenceInput::kNsaIndexTopk ? 1 : -1; }

}  // namespace

std::optional<size_t> FindModel(std::string_view name, std::string_view version) {
  if (!version.empty() && version != kModelVersion) return std::nullopt;
  for (size_t model = 0; model < kNumInferenceModels; ++model) {
    if (name == kInferenceModels[model].name) return model;
  }
  return std::nullopt;
}

std::string Shown(std::string_view name) {
  constexpr size_t kMostBytes = 64;
  return absl::StrCat("\"", absl::CEscape({name.data(), std::min(name.size(), kMostBytes)}),
                      name.size() > kMostBytes ? "\"..." : "\"");
}

Refusal NoSuchModel(std::string_view name, std::string_view version) {
  const bool wrong_version = FindModel(name, "").has_value();
  return {.code = grpc::StatusCode::NOT_FOUND,
          .reason = v1::REFUSAL_REASON_UNKNOWN_NAME,
          .message = wrong_version ? absl::StrCat("model_version is ", Shown(version), ", and there is only \"",
                                                  kModelVersion, "\"")
                                   : absl::StrCat("model_name is ", Shown(name), ", and there are only ",
                                                  kInferenceModels[0].name, " and ", kInferenceModels[1].name),
          .field = wrong_version ? "model_version" : "model_name"};
}

inference::ServerMetadataResponse ServerMetadata() {
  inference::ServerMetadataResponse answer;
  answer.set_name("nsa-metadata-server");
  answer.set_version(kVersion);
  answer.add_extensions("model_configuration");
  answer.add_extensions("statistics");
  return answer;
}

inference::ModelMetadataResponse ModelMetadata(size_t model) {
  inference::ModelMetadataResponse answer;
  answer.set_name(kInferenceModels[model].name);
  answer.add_versions(kModelVersion);
  answer.set_platform("nsa_metadata");
  const auto fill = [](inference::ModelMetadataResponse::TensorMetadata& tensor, const char* name, int64_t size) {
    tensor.set_name(name);
    tensor.set_datatype(kTensorType);
    tensor.add_shape(size);
  };
  for (size_t i = 0; i < kInferenceInputs.size(); ++i) {
    fill(*answer.add_inputs(), kInferenceInputs[i], SizeOf(static_cast<InferenceInput>(i)));
  }
  for (Output output : kernels::kAllOutputs) fill(*answer.add_outputs(), kernels::OutputName(output), -1);
  return answer;
}

inference::ModelConfigResponse ModelConfig(size_t model) {
  inference::ModelConfigResponse answer;
  inference::ModelConfig& config = *answer.mutable_config();
  config.set_name(kInferenceModels[model].name);
  config.set_platform("nsa_metadata");
  config.set_backend("nsa_metadata");
  for (size_t i = 0; i < kInferenceInputs.size(); ++i) {
    const auto which = static_cast<InferenceInput>(i);
    inference::ModelInput& input = *config.add_input();
    input.set_name(kInferenceInputs[i]);
    input.set_data_type(inference::TYPE_INT32);
    input.add_dims(SizeOf(which));
    input.set_optional(which == InferenceInput::kNsaIndexTopk);
  }
  for (Output one : kernels::kAllOutputs) {
    inference::ModelOutput& output = *config.add_output();
    output.set_name(kernels::OutputName(one));
    output.set_data_type(inference::TYPE_INT32);
    output.add_dims(-1);
  }
  return answer;
}

}  // namespace nsa::metadata::server
