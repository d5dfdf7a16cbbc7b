// One connection to the health port: grpc.health.v1 over HTTP/2.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/acceptor.h"

namespace nsa::metadata::server {

// Does not wait: of a peer that doesn't read its answers nothing more is read. Not thread-safe.
class HealthConnection {
 public:
  // `serving` is what those who ask are told, and outlives it.
  HealthConnection(Descriptor fd, const bool& serving);
  HealthConnection(const HealthConnection&) = delete;

  int fd() const { return fd_.get(); }
  // Then nothing is read before it is written.
  bool wants_to_write() const { return !unsent_.empty(); }

  // Each false where the connection is over.

  // Reads some of what has come, and answers.
  bool Read();
  bool Write();
  // Tells the watches of a change.
  bool Tell();

 private:
  struct Stream {
    std::string path;
    bool is_post = false;
    bool is_grpc = false;
    size_t header_bytes = 0;
    std::string body;
    bool is_too_long = false;
    // Of a watch, the service's name and what it has been told.
    std::optional<std::string> watched;
    std::optional<grpc::health::v1::HealthCheckResponse::ServingStatus> told;
    // What is to be sent.
    std::string answer;
  };

  // nghttp2's callbacks; `user` is the connection.
  static int OnBegin(nghttp2_session*, const nghttp2_frame* frame, void* user);
  static int OnField(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_length,
                     const uint8_t* value, size_t value_length, uint8_t, void* user);
  static int OnData(nghttp2_session*, uint8_t, int32_t id, const uint8_t* data, size_t length, void* user);
  static int OnFrame(nghttp2_session*, const nghttp2_frame* frame, void* user);
  static int OnClose(nghttp2_session*, int32_t id, uint32_t, void* user);
  static nghttp2_session* NewSession(HealthConnection* connection);

  void OnRequest(int32_t id, Stream& stream);
  static ssize_t TakeAnswer(nghttp2_session* session, int32_t id, uint8_t* to, size_t room, uint32_t* flags,
                            nghttp2_data_source* source, void*);
  // Answers with a status alone.
  void Refuse(int32_t id, int status, const std::string& message);
  void TellWatch(int32_t id, Stream& stream);
  Stream* StreamOf(int32_t id);

  Descriptor fd_;
  const bool& serving_;
  std::unordered_map<int32_t, Stream> streams_;
  std::string unsent_;
  std::unique_ptr<nghttp2_session, void (*)(nghttp2_session*)> session_;  // refers to the streams
};

}  // namespace nsa::metadata::server
