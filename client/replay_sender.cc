#include "client/replay_sender.h"

#include <memory>
#include <utility>
#include <vector>

namespace nsa::metadata::client {
namespace {

class Streams {
 public:
  Streams(Client& client, int num_streams) {
    for (int i = 0; i < num_streams; ++i) streams_.push_back(*client.OpenStream());
  }

  void Send(const Request& request, const Client::Callback& callback) {
    const absl::Status sent = streams_[next_++ % streams_.size()]->Send(request, callback);
    if (!sent.ok()) callback(sent);
  }

 private:
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
