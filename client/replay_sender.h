// The ways a replay's requests go to the server.
#pragma once

#include <functional>

#include "client/client.h"

namespace nsa::metadata::client {

// Sends a request; the callback runs once with its outcome, on any thread, maybe before this returns. Not thread-safe,
// and may block until there is room for the request.
using Sender = std::function<void(const Request&, Client::Callback)>;

// A unary call for each request. `client` has to outlive the sender.
Sender SendAsCalls(Client& client);

// `num_streams` ExpandStream calls, which requests take in turn. The sender blocks at its end until all is answered.
Sender SendOverStreams(Client& client, int num_streams);

}  // namespace nsa::metadata::client
