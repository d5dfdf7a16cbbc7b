#include "client/replay_sender.h"

#include <memory>
#include <utility>
#include <vector>

namespace nsa::metadata::client {
namespace {

class Streams {
 public:
  Streams(Client& client, int num_streams) : client_(client), streams_(static_cast<size_t>(num_streams)) {}

  void Send(const Request& request, const Client::Callback& callback) {
    std::unique_ptr<ExpandStream>& stream = streams_[next_++ % streams_.size()];
    if (stream != nullptr && stream->Send(request, callback).ok()) return;
    const absl::Status sent = SendOverNewOne(stream, request, callback);
    if (!sent.ok()) callback(sent);
  }

 private:
  absl::Status SendOverNewOne(std::unique_ptr<ExpandStream>& stream, const Request& request,
                              const Client::Callback& callback) {
    absl::StatusOr<std::unique_ptr<ExpandStream>> opened = client_.OpenStream();
    if (!opened.ok()) return opened.status();
    stream = *std::move(opened);
    return stream->Send(request, callback);
  }

  Client& client_;
  std::vector<std::unique_ptr<ExpandStream>> streams_;
  size_t next_ = 0;
};

}  // namespace

Sender SendAsCalls(Client& client) {
  return [&client](const Request& request, Client::Callback callback) {
    client.ExpandAsync(request, std::move(callback));
  };
}

Sender SendOverStreams(Client& client, int num_streams) {
  return [streams = std::make_shared<Streams>(client, num_streams)](const Request& request, Client::Callback callback) {
    streams->Send(request, callback);
  };
}

}  // namespace nsa::metadata::client
