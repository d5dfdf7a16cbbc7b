#include "server/inference_calls.h"

#include <string>
#include <variant>

#include "inference/inference.pb.h"
#include "server/inference_codec.h"
#include "server/inference_models.h"
#include "server/recycled.h"
#include "server/unary_call.h"

namespace nsa::metadata::server {
namespace {

// Whether a message that was read may be read into again: strings and messages that are cleared keep their memory, so
// one that had more of them than a sound request has, or large ones, would keep it for good.
bool MayBeKept(const inference::ModelInferRequest& request, size_t bytes) {
  constexpr size_t kMostBytes = 16 << 10;
  constexpr int kMostParameters = 16;
  const auto inputs = static_cast<int>(kInferenceInputs.size());
  return bytes <= kMostBytes && request.inputs_size() <= inputs && request.raw_input_contents_size() <= inputs &&
         request.outputs_size() <= static_cast<int>(kernels::kNumOutputs) &&
         request.parameters_size() <= kMostParameters;
}

class ModelInferCall final : public ComputeCall, public Recycled<ModelInferCall> {
 public:
  ModelInferCall(CallContext& context, CallQueue& queue) : ComputeCall(Method::kModelInfer, context, queue) {
    AwaitCall();
  }

  void Reply(Messages reply, const Journey& journey) override {
    context_.inference_statistics.Succeeded(*inference_.model, journey);
    ComputeCall::Reply(std::move(reply), journey);
  }
  void Refuse(const Refusal& refusal) override {
    // Of a model that there is.
    if (inference_.model) context_.inference_statistics.Failed(*inference_.model, Nanoseconds(arrived(), Clock::now()));
    ComputeCall::Refuse(refusal);
  }

 private:
  void Request(void* tag) override {
    context_.inference.Request(method(), &server_context_, &request_, &writer_, queue_.get(), tag);
  }
  void MakeSuccessor() override { new ModelInferCall(context_, queue_); }
  std::optional<Refusal> Read(Task& task) override;

  InferenceRequest inference_;
};

std::optional<Refusal> ModelInferCall::Read(Task& task) {
  // One a thread: it keeps its memory from call to call.
  thread_local inference::ModelInferRequest request;
  std::optional<Refusal> refusal = Decode(request_, &request);
  if (!refusal) refusal = Validate(request, context_.options.request, &task.expansion, &inference_);
  if (!refusal) {
    task.CopyLengths();
    if (inference_.timeout > Clock::duration::zero()) task.AddCallersDeadline(arrived() + inference_.timeout);
  }
  if (refusal || !MayBeKept(request, request_.Length())) request = {};
  return refusal;
}

using Answer = std::variant<std::string, Refusal>;

// Answers of `of` for the model that `request` names.
template <typename Of>
Answer AboutModel(const std::string& name, const std::string& version, const Of& of) {
  const std::optional<size_t> model = FindModel(name, version);
  if (!model) return NoSuchModel(name, version);
  return of(*model).SerializeAsString();
}

// What is answered at once, without a lane.
class QuestionCall final : public UnaryCall {
 public:
  QuestionCall(Method method, CallContext& context, CallQueue& queue) : UnaryCall(method, context, queue) {
    AwaitCall();
  }

 private:
  void Request(void* tag) override {
    context_.inference.Request(method(), &server_context_, &request_, &writer_, queue_.get(), tag);
  }
  void MakeSuccessor() override { new QuestionCall(method(), context_, queue_); }
  void Handle() override {
    const Answer answer = AnswerIt();
    if (const auto* refusal = std::get_if<Refusal>(&answer)) {
      SendRefusal(*refusal);
      return;
    }
    const grpc::Slice bytes(std::get<std::string>(answer));
    Send(ReplyMessage(&bytes, 1));
  }
  Answer AnswerIt();
  Answer Statistics(const inference::ModelStatisticsRequest& request) const;
  bool ready() const { return context_.health.StatusOf("") == grpc::health::v1::HealthCheckResponse::SERVING; }
};

Answer QuestionCall::Statistics(const inference::ModelStatisticsRequest& request) const {
  inference::ModelStatisticsResponse answer;
  const auto add = [&](size_t model) { *answer.add_model_stats() = context_.inference_statistics.Of(model); };
  if (request.name().empty()) {
    for (size_t model = 0; model < kNumInferenceModels; ++model) add(model);
  } else {
    const std::optional<size_t> model = FindModel(request.name(), request.version());
    if (!model) return NoSuchModel(request.name(), request.version());
    add(*model);
  }
  return answer.SerializeAsString();
}

Answer QuestionCall::AnswerIt() {
  switch (method()) {
    case Method::kServerLive: {
      inference::ServerLiveRequest request;
      if (const std::optional<Refusal> refusal = Decode(request_, &request)) return *refusal;
      inference::ServerLiveResponse answer;
      answer.set_live(true);
      return answer.SerializeAsString();
    }
    case Method::kServerReady: {
      inference::ServerReadyRequest request;
      if (const std::optional<Refusal> refusal = Decode(request_, &request)) return *refusal;
      inference::ServerReadyResponse answer;
      answer.set_ready(ready());
      return answer.SerializeAsString();
    }
    case Method::kModelReady: {
      inference::ModelReadyRequest request;
      if (const std::optional<Refusal> refusal = Decode(request_, &request)) return *refusal;
      inference::ModelReadyResponse answer;
      answer.set_ready(FindModel(request.name(), request.version()).has_value() && ready());
      return answer.SerializeAsString();
    }
    case Method::kServerMetadata: {
      inference::ServerMetadataRequest request;
      if (const std::optional<Refusal> refusal = Decode(request_, &request)) return *refusal;
      return ServerMetadata().SerializeAsString();
    }
    case Method::kModelMetadata: {
      inference::ModelMetadataRequest request;
      if (const std::optional<Refusal> refusal = Decode(request_, &request)) return *refusal;
      return AboutModel(request.name(), request.version(), ModelMetadata);
    }
    case Method::kModelConfig: {
      inference::ModelConfigRequest request;
      if (const std::optional<Refusal> refusal = Decode(request_, &request)) return *refusal;
      return AboutModel(request.name(), request.version(), ModelConfig);
    }
    case Method::kModelStatistics: {
      inference::ModelStatisticsRequest request;
      if (const std::optional<Refusal> refusal = Decode(request_, &request)) return *refusal;
      return Statistics(request);
    }
    default:
      return InternalFault("there is no answer to this");
  }
}

}  // namespace

void AwaitModelInfer(CallContext& context, CallQueue& queue) { new ModelInferCall(context, queue); }

void AwaitInferenceQuestions(CallContext& context, CallQueue& queue) {
  for (Method method : {Method::kServerLive, Method::kServerReady, Method::kModelReady, Method::kServerMetadata,
                        Method::kModelMetadata, Method::kModelConfig, Method::kModelStatistics}) {
    new QuestionCall(method, context, queue);
  }
}

}  // namespace nsa::metadata::server
