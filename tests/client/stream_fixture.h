// A stream to a fake server, and what became of its items.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "client/client.h"
#include "client/mutex.h"
#include "client/stream.h"
#include "tests/client/fake_server.h"

namespace nsa::metadata::client {

// A request for 5 tokens of 2 sequences, with every output. Its arrays live as long as the program.
Request StreamedRequest(uint64_t request_id);

// How items ended. Thread-safe.
class Outcomes {
 public:
  // To be called once.
  ExpandStream::Callback For(uint64_t request_id);
  // Blocks until there are so many.
  void Await(size_t count);
  // NOT_FOUND: there is none yet.
  absl::StatusOr<v1::ExpandResponse> Of(uint64_t request_id);
  // Whether a StreamedRequest got what a unary call gets: "", or how it differs.
  std::string DifferenceOf(uint64_t request_id);

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<uint64_t, absl::StatusOr<v1::ExpandResponse>> responses_ ABSL_GUARDED_BY(mutex_);
};

// A server that answers with `function`, and a stream to it.
struct StreamFixture {
  explicit StreamFixture(FakeServer::StreamFunction function, const ClientOptions& client_options = {},
                         const StreamOptions& options = {})
      : server(nullptr, std::move(function)),
        client(*Client::Connect(server.target(), client_options)),
        stream(*client->OpenStream(options)) {}

  absl::Status Send(uint64_t request_id) { return stream->Send(StreamedRequest(request_id), outcomes.For(request_id)); }
  // Sends the request_ids 0 to `count` - 1.
  void SendAll(uint64_t count);

  FakeServer server;
  Outcomes outcomes;
  std::unique_ptr<Client> client;
  std::unique_ptr<ExpandStream> stream;
};

// What StreamFunctions are made of: reads a request and answers what it should get.
v1::ExpandResponse ReadAndExpand(FakeStream& stream);
// Reads until the caller sends no more or is gone.
void ReadToTheEnd(FakeStream& stream);

}  // namespace nsa::metadata::client
