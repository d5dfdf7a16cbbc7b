#include "client/client.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "client/prepare_grpc.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

// gRPC doesn't repeat a call whose request is larger than its buffer, by default 256 KiB; the service takes 1 MiB.
constexpr int kRetryBufferBytes = 2 << 20;

// From one connection that could not be made to the next try; it grows by 1.6 each time, to the second. gRPC's own, 1 s
// and 120 s, outlast all attempts of a call, so that one refused connection would fail every call meanwhile, and a
// server that was away for minutes would be found minutes after its return.
constexpr absl::Duration kInitialReconnectBackoff = absl::Milliseconds(100);
constexpr absl::Duration kMaxReconnectBackoff = absl::Seconds(5);

absl::Status OutOfRange(const char* option, const std::string& value, const char* want,
                        const char* options = "ClientOptions") {
  return absl::InvalidArgumentError(absl::StrCat(options, ".", option, " is ", value, ", want ", want));
}

absl::Status Check(const ClientOptions& options) {
  const Retry& retry = options.retry;
  if (options.timeout < absl::ZeroDuration()) {
    return OutOfRange("timeout", absl::FormatDuration(options.timeout), "0 or more");
  }
  if (retry.max_attempts < 1 || retry.max_attempts > 5) {
    return OutOfRange("retry.max_attempts", absl::StrCat(retry.max_attempts), "1 to 5");
  }
  if (retry.initial_backoff < absl::Milliseconds(1) || retry.initial_backoff > absl::Hours(1)) {
    return OutOfRange("retry.initial_backoff", absl::FormatDuration(retry.initial_backoff), "1ms to 1h");
  }
  if (retry.max_backoff < absl::Milliseconds(1) || retry.max_backoff > absl::Hours(1)) {
    return OutOfRange("retry.max_backoff", absl::FormatDuration(retry.max_backoff), "1ms to 1h");
  }
  if (options.channels < 1 || options.channels > 1024) {
    return OutOfRange("channels", absl::StrCat(options.channels), "1 to 1024");
  }
  if (options.keepalive_time < absl::Seconds(10) || options.keepalive_time > absl::Hours(24)) {
    return OutOfRange("keepalive_time", absl::FormatDuration(options.keepalive_time), "10s to 24h");
  }
  if (options.keepalive_timeout < absl::Milliseconds(1) || options.keepalive_timeout > absl::Hours(24)) {
    return OutOfRange("keepalive_timeout", absl::FormatDuration(options.keepalive_timeout), "1ms to 24h");
  }
  if (options.max_receive_message_bytes < 1) {
    return OutOfRange("max_receive_message_bytes", absl::StrCat(options.max_receive_message_bytes), "1 or more");
  }
  return absl::OkStatus();
}

int Milliseconds(absl::Duration duration) { return static_cast<int>(absl::ToInt64Milliseconds(duration)); }

std::string ServiceConfig(const Retry& retry) {
  const std::string retry_policy = absl::StrFormat(
      R"("retryPolicy": {"maxAttempts": %d, "initialBackoff": "%.3fs", "maxBackoff": "%.3fs", "backoffMultiplier": 2,
                         "retryableStatusCodes": ["UNAVAILABLE"]})",
      retry.max_attempts, absl::ToDoubleSeconds(retry.initial_backoff), absl::ToDoubleSeconds(retry.max_backoff));
  // ExpandStream sends its items again itself: gRPC can't once an answer has come.
  return absl::StrFormat(
      R"({"loadBalancingConfig": [{"round_robin": {}}],
          "methodConfig": [{"name": [{"service": "%1$s", "method": "ExpandStream"}]},
                           {"name": [{"service": "%1$s"}]%2$s%3$s}]})",
      v1::MetadataService::service_full_name(), retry.max_attempts > 1 ? ", " : "",
      retry.max_attempts > 1 ? retry_policy : "");
}

}  // namespace

grpc::ChannelArguments ChannelArgumentsOf(const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(ServiceConfig(options.retry));
  // The policy above is the only one: no answer of a name server's can replace it.
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, kRetryBufferBytes);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, Milliseconds(kInitialReconnectBackoff));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, Milliseconds(kMaxReconnectBackoff));
  arguments.SetMaxReceiveMessageSize(options.max_receive_message_bytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_time));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(options.keepalive_timeout));
  // A stream may be without an item for longer than two of them.
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  // Channels of the same target and arguments would share a connection otherwise.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

namespace {

// gRPC 1.51.1 has one queue for the callbacks of all channels, and now and then frees it twice when the last channel
// that used it goes: AddressSanitizer saw it in one of some 300 processes. So one that goes nowhere uses it, and stays.
void KeepCallbackQueue() {
  struct Kept {
    const std::unique_ptr<v1::MetadataService::Stub> stub =
        v1::MetadataService::NewStub(grpc::CreateChannel("", /*creds=*/nullptr));
    grpc::ClientContext context;
    v1::GetServerInfoRequest request;
    v1::GetServerInfoResponse response;
  };
  // Volatile, or the pointer is optimised away and LeakSanitizer finds what it pointed to.
  [[maybe_unused]] static Kept* const volatile kept = [] {
    auto* made = new Kept;
    made->stub->async()->GetServerInfo(&made->context, &made->request, &made->response, [](const grpc::Status&) {});
    return made;
  }();
}

// What a call needs until gRPC is done with it, which may be after it was answered, and after its Client's end.
template <typename RequestMessage, typename ResponseMessage>
struct UnaryCall {
  std::shared_ptr<v1::MetadataService::Stub> stub;
  grpc::ClientContext context;
  RequestMessage request;
  ResponseMessage response;
  std::function<void(absl::StatusOr<ResponseMessage>)> callback;
  // Where there is a deadline.
  std::optional<Deadlines::Id> deadline;
};

absl::Status NotInTime() {
  return absl::DeadlineExceededError(
      "the deadline passed while the request was on its way to a peer that takes nothing");
}

// Has `call` make an asynchronous call with the callback it is given, and waits for the outcome.
template <typename ResponseMessage, typename Call>
absl::StatusOr<ResponseMessage> Await(const Call& call) {
  absl::Notification answered;
  absl::StatusOr<ResponseMessage> outcome;
  call([&](absl::StatusOr<ResponseMessage> response) {
    outcome = std::move(response);
    answered.Notify();
  });
  answered.WaitForNotification();
  return outcome;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& target, ClientOptions options) {
  if (target.empty()) return absl::InvalidArgumentError("the target is empty, want a name as \"host:port\"");
  if (const absl::Status status = Check(options); !status.ok()) return status;
  if (options.credentials == nullptr) options.credentials = grpc::InsecureChannelCredentials();
  return std::unique_ptr<Client>(new Client(target, options));
}

Client::Client(const std::string& target, const ClientOptions& options)
    : timeout_(options.timeout == absl::ZeroDuration() ? absl::InfiniteDuration() : options.timeout),
      retry_(options.retry) {
  PrepareGrpc();
  KeepCallbackQueue();
  const grpc::ChannelArguments arguments = ChannelArgumentsOf(options);
  for (int i = 0; i < options.channels; ++i) {
    stubs_.push_back(v1::MetadataService::NewStub(grpc::CreateCustomChannel(target, options.credentials, arguments)));
  }
}

Client::~Client() {
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return unanswered_ == 0; };
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&idle));
  deadlines_->Clear();
}

template <typename ResponseMessage, typename RequestMessage, typename Method>
void Client::Call(RequestMessage request, std::optional<absl::Time> deadline, const Method& method,
                  std::function<void(absl::StatusOr<ResponseMessage>)> callback) {
  {
    const absl::MutexLock lock(&mutex_);
    ++unanswered_;
  }
  auto call = std::make_shared<UnaryCall<RequestMessage, ResponseMessage>>();
  call->stub = NextStub();
  call->request = std::move(request);
  call->callback = std::move(callback);
  // gRPC takes a time before 1970 for no deadline.
  const absl::Time effective = std::max(deadline.value_or(absl::Now() + timeout_), absl::UnixEpoch());
  if (effective != absl::InfiniteFuture()) {
    call->context.set_deadline(absl::ToChronoTime(effective));
    call->deadline = deadlines_->Add(effective, [this, call] {
      call->context.TryCancel();
      call->callback(NotInTime());
      Answered();
    });
  }
  // Not this, which may be gone when gRPC is done with a call that was answered before.
  (call->stub->async()->*method)(
      &call->context, &call->request, &call->response,
      [this, call, deadlines = deadlines_](const grpc::Status& status) {
        if (call->deadline && !deadlines->Remove(*call->deadline)) return;
        call->callback(status.ok() ? absl::StatusOr<ResponseMessage>(std::move(call->response)) : ToAbslStatus(status));
        Answered();
      });
}

void Client::Answered() {
  const absl::MutexLock lock(&mutex_);
  --unanswered_;
}

absl::StatusOr<v1::ExpandResponse> Client::Expand(const Request& request, std::optional<absl::Time> deadline) {
  return Await<v1::ExpandResponse>([&](Callback callback) { ExpandAsync(request, std::move(callback), deadline); });
}

void Client::ExpandAsync(const Request& request, Callback callback, std::optional<absl::Time> deadline) {
  using Async = v1::MetadataService::StubInterface::async_interface;
  void (Async::*method)(grpc::ClientContext*, const v1::ExpandRequest*, v1::ExpandResponse*,
                        std::function<void(grpc::Status)>) = &Async::Expand;
  Call<v1::ExpandResponse>(ToProto(request), deadline, method, std::move(callback));
}

absl::StatusOr<std::unique_ptr<ExpandStream>> Client::OpenStream(const StreamOptions& options) {
  if (options.max_queued < 1) {
    return OutOfRange("max_queued", absl::StrCat(options.max_queued), "1 or more", "StreamOptions");
  }
  return std::make_unique<ExpandStream>(NextStub(), options, retry_, timeout_);
}

absl::StatusOr<v1::GetServerInfoResponse> Client::ServerInfo(std::optional<absl::Time> deadline) {
  using Async = v1::MetadataService::StubInterface::async_interface;
  void (Async::*method)(grpc::ClientContext*, const v1::GetServerInfoRequest*, v1::GetServerInfoResponse*,
                        std::function<void(grpc::Status)>) = &Async::GetServerInfo;
  return Await<v1::GetServerInfoResponse>([&](std::function<void(absl::StatusOr<v1::GetServerInfoResponse>)> callback) {
    Call<v1::GetServerInfoResponse>(v1::GetServerInfoRequest(), deadline, method, std::move(callback));
  });
}

const std::shared_ptr<v1::MetadataService::Stub>& Client::NextStub() {
  return stubs_[next_stub_.fetch_add(1, std::memory_order_relaxed) % stubs_.size()];
}

}  // namespace nsa::metadata::client
