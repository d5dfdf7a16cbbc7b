#include "server/health_connection.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/support/status.h"
#include "server/health_service.h"

namespace nsa::metadata::server {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr std::string_view kCheck = "/grpc.health.v1.Health/Check";
constexpr std::string_view kWatch = "/grpc.health.v1.Health/Watch";

constexpr size_t kPrefixBytes = 5;  // of a message: whether it is compressed, and its length, big-endian
// The name of a service.
constexpr size_t kMostRequestBytes = 4 << 10;
// Of a request's header list, as HTTP/2 counts it: few bytes on the wire may name long fields of the connection's
// table.
constexpr size_t kMostHeaderBytes = 8 << 10;
constexpr size_t kFieldOverhead = 32;
// gRPC's clients take so much of a status.
constexpr size_t kMostNamedBytes = 256;
constexpr uint32_t kMostStreams = 32;
// Of a turn, after which it is the others'.
constexpr size_t kReadBytes = 16 << 10;

nghttp2_nv Field(std::string_view name, std::string_view value) {
  // nghttp2 copies both.
  const auto bytes = [](std::string_view text) {
    return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(text.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

bool IsGrpc(std::string_view content_type) {
  constexpr std::string_view kGrpc = "application/grpc";
  if (!content_type.starts_with(kGrpc)) return false;
  return content_type.size() == kGrpc.size() || content_type[kGrpc.size()] == '+' || content_type[kGrpc.size()] == ';';
}

// As gRPC has grpc-message: what is not printable, and %, as %XX.
std::string PercentEncoded(std::string_view text) {
  std::string encoded;
  for (const unsigned char c : text) {
    if (c >= ' ' && c <= '~' && c != '%') {
      encoded.push_back(static_cast<char>(c));
    } else {
      absl::StrAppend(&encoded, "%", absl::Hex(c, absl::kZeroPad2));
    }
  }
  return encoded;
}

std::string Message(HealthCheckResponse::ServingStatus status) {
  HealthCheckResponse response;
  response.set_status(status);
  const std::string bytes = response.SerializeAsString();
  std::string message(kPrefixBytes, '\0');
  message[kPrefixBytes - 1] = static_cast<char>(bytes.size());  // a few
  return message + bytes;
}

// The request in a message with its prefix, or what is wrong.
grpc::Status Parse(std::string_view body, HealthCheckRequest* request) {
  if (body.size() < kPrefixBytes) return {grpc::StatusCode::INTERNAL, "the request has no message"};
  if (body[0] != 0) return {grpc::StatusCode::UNIMPLEMENTED, "a compressed message is not taken"};
  uint32_t length = 0;
  for (size_t i = 1; i < kPrefixBytes; ++i) length = length << 8 | static_cast<uint8_t>(body[i]);
  const std::string_view message = body.substr(kPrefixBytes);
  if (message.size() != length || !request->ParseFromArray(message.data(), static_cast<int>(message.size()))) {
    return {grpc::StatusCode::INTERNAL, "the request is not one HealthCheckRequest"};
  }
  return grpc::Status::OK;
}

}  // namespace

HealthConnection::HealthConnection(Descriptor fd, const bool& serving)
    : fd_(std::move(fd)), serving_(serving), session_(NewSession(this), nghttp2_session_del) {
  const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, kMostStreams}};
  nghttp2_submit_settings(session_.get(), NGHTTP2_FLAG_NONE, settings, std::size(settings));
}

nghttp2_session* HealthConnection::NewSession(HealthConnection* connection) {
  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, OnBegin);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, OnField);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, OnData);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, OnFrame);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, OnClose);
  nghttp2_session* session = nullptr;
  nghttp2_session_server_new(&session, callbacks, connection);
  nghttp2_session_callbacks_del(callbacks);
  return session;
}

int HealthConnection::OnBegin(nghttp2_session*, const nghttp2_frame* frame, void* user) {
  static_cast<HealthConnection*>(user)->streams_.try_emplace(frame->hd.stream_id);
  return 0;
}

int HealthConnection::OnField(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_length,
                              const uint8_t* value, size_t value_length, uint8_t, void* user) {
  Stream* stream = static_cast<HealthConnection*>(user)->StreamOf(frame->hd.stream_id);
  if (stream == nullptr) return 0;
  stream->header_bytes += name_length + value_length + kFieldOverhead;
  if (stream->header_bytes > kMostHeaderBytes) return NGHTTP2_ERR_CALLBACK_FAILURE;  // ends the connection
  const std::string_view name_text(reinterpret_cast<const char*>(name), name_length);
  const std::string_view value_text(reinterpret_cast<const char*>(value), value_length);
  if (name_text == ":path" && value_length <= kWatch.size()) stream->path = value_text;
  if (name_text == ":method") stream->is_post = value_text == "POST";
  if (name_text == "content-type") stream->is_grpc = IsGrpc(value_text);
  return 0;
}

int HealthConnection::OnData(nghttp2_session*, uint8_t, int32_t id, const uint8_t* data, size_t length, void* user) {
  Stream* stream = static_cast<HealthConnection*>(user)->StreamOf(id);
  if (stream == nullptr) return 0;
  if (stream->body.size() + length > kPrefixBytes + kMostRequestBytes) stream->is_too_long = true;
  if (!stream->is_too_long) stream->body.append(reinterpret_cast<const char*>(data), length);
  return 0;
}

int HealthConnection::OnFrame(nghttp2_session*, const nghttp2_frame* frame, void* user) {
  auto* connection = static_cast<HealthConnection*>(user);
  if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
  if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
  if (Stream* stream = connection->StreamOf(frame->hd.stream_id)) connection->OnRequest(frame->hd.stream_id, *stream);
  return 0;
}

int HealthConnection::OnClose(nghttp2_session*, int32_t id, uint32_t, void* user) {
  static_cast<HealthConnection*>(user)->streams_.erase(id);
  return 0;
}

HealthConnection::Stream* HealthConnection::StreamOf(int32_t id) {
  const auto stream = streams_.find(id);
  return stream == streams_.end() ? nullptr : &stream->second;
}

bool HealthConnection::Read() {
  std::array<uint8_t, kReadBytes> bytes;
  const ssize_t count = recv(fd_.get(), bytes.data(), bytes.size(), 0);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  if (count == 0) return false;
  const bool understood = nghttp2_session_mem_recv(session_.get(), bytes.data(), static_cast<size_t>(count)) >= 0;
  return Write() && understood;
}

bool HealthConnection::Write() {
  const uint8_t* bytes = nullptr;
  for (ssize_t count = 0; (count = nghttp2_session_mem_send(session_.get(), &bytes)) != 0;) {
    if (count < 0) return false;
    unsent_.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
  }
  while (!unsent_.empty()) {
    const ssize_t count = send(fd_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno == EAGAIN;
    unsent_.erase(0, static_cast<size_t>(count));
  }
  return nghttp2_session_want_read(session_.get()) != 0;
}

bool HealthConnection::Tell() {
  for (auto& [id, stream] : streams_) TellWatch(id, stream);
  return Write();
}

void HealthConnection::OnRequest(int32_t id, Stream& stream) {
  if (!stream.is_post || !stream.is_grpc) {
    const nghttp2_nv fields[] = {Field(":status", stream.is_post ? "415" : "405")};
    nghttp2_submit_response(session_.get(), id, fields, std::size(fields), /*data_prd=*/nullptr);
    return;
  }
  if (stream.path != kCheck && stream.path != kWatch) {
    return Refuse(id, grpc::StatusCode::UNIMPLEMENTED, "this port has the methods of grpc.health.v1.Health alone");
  }
  if (stream.is_too_long) {
    return Refuse(id, grpc::StatusCode::RESOURCE_EXHAUSTED,
                  absl::StrCat("the request has more than ", kMostRequestBytes, " bytes"));
  }
  HealthCheckRequest request;
  if (const grpc::Status status = Parse(stream.body, &request); !status.ok()) {
    return Refuse(id, status.error_code(), status.error_message());
  }
  if (stream.path == kWatch) {
    stream.watched = request.service();
    TellWatch(id, stream);
  } else {
    const HealthCheckResponse::ServingStatus status = ServingStatusOf(request.service(), serving_);
    if (status == HealthCheckResponse::SERVICE_UNKNOWN) {
      return Refuse(id, grpc::StatusCode::NOT_FOUND, NoSuchService(request.service().substr(0, kMostNamedBytes)));
    }
    stream.answer = Message(status);
  }
  const nghttp2_nv fields[] = {Field(":status", "200"), Field("content-type", "application/grpc")};
  nghttp2_data_provider answer = {};
  answer.source.ptr = &stream;
  answer.read_callback = TakeAnswer;
  nghttp2_submit_response(session_.get(), id, fields, std::size(fields), &answer);
}

ssize_t HealthConnection::TakeAnswer(nghttp2_session* session, int32_t id, uint8_t* to, size_t room, uint32_t* flags,
                                     nghttp2_data_source* source, void*) {
  Stream& stream = *static_cast<Stream*>(source->ptr);
  const size_t count = stream.answer.copy(reinterpret_cast<char*>(to), room);
  stream.answer.erase(0, count);
  if (stream.watched && count == 0) return NGHTTP2_ERR_DEFERRED;
  if (!stream.watched && stream.answer.empty()) {
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    const nghttp2_nv ok[] = {Field("grpc-status", "0")};
    nghttp2_submit_trailer(session, id, ok, std::size(ok));
  }
  return static_cast<ssize_t>(count);
}

void HealthConnection::Refuse(int32_t id, int status, const std::string& message) {
  const std::string code = absl::StrCat(status);
  const std::string encoded = PercentEncoded(message);
  const nghttp2_nv fields[] = {Field(":status", "200"), Field("content-type", "application/grpc"),
                               Field("grpc-accept-encoding", "identity"), Field("grpc-status", code),
                               Field("grpc-message", encoded)};
  nghttp2_submit_response(session_.get(), id, fields, std::size(fields), /*data_prd=*/nullptr);
}

void HealthConnection::TellWatch(int32_t id, Stream& stream) {
  if (!stream.watched) return;
  const HealthCheckResponse::ServingStatus status = ServingStatusOf(*stream.watched, serving_);
  if (status == stream.told) return;
  stream.answer += Message(status);  // a peer's window may be shut: a few bytes for each change of the server's
  stream.told = status;
  nghttp2_session_resume_data(session_.get(), id);  // an error where it does not wait for more
}

}  // namespace nsa::metadata::server
