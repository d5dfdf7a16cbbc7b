#include "server/grpc_connections.h"

#include "absl/time/time.h"

namespace nsa::metadata::server {
namespace {

// Callers that ask for a sign of life more often are turned away, by gRPC.
constexpr int kLeastBetweenPingsMs = 10'000;

// gRPC spreads ages by a tenth either way, so that connections that came together don't all go at once.
constexpr double kAgeSpread = 1.1;

int Milliseconds(absl::Duration duration) { return static_cast<int>(absl::ToInt64Milliseconds(duration)); }

}  // namespace

void SetConnectionArguments(grpc::ServerBuilder& builder, const ConnectionOptions& options) {
  // What gRPC refuses never reaches us, and what never reaches us is held against its connection: so large messages and
  // compressed ones are refused by us (see CheckMessage). gRPC's own limit, which acts only when a message is whole
  // like ours, is a coarse one.
  builder.SetMaxReceiveMessageSize(static_cast<int>(8 * options.max_receive_message));
  // A small compressed message may inflate to anything.
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
  // gRPC's own limit is a coarse one, far behind ours: what passes it fails other calls of the connection too.
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(8 * options.max_metadata_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(options.max_streams_per_connection));
  // Not 0, which is gRPC's for none.
  const absl::Duration age = absl::Ceil(options.max_connection_age / kAgeSpread, absl::Milliseconds(1));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, Milliseconds(age));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, Milliseconds(options.max_connection_age_grace));
  // gRPC closes an idle connection after twice what it is told.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(options.max_connection_idle / 2));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_time));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(options.keepalive_timeout));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, static_cast<int>(kStreamWindowBytes));
  // Callers may ask the same, with or without a call.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kLeastBetweenPingsMs);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, Milliseconds(options.handshake_timeout));
}

std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> AddConnections(
    grpc::ServerBuilder& builder, const std::shared_ptr<grpc::ServerCredentials>& credentials) {
  return builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials);
}

void HandOver(int fd, int listener_fd, grpc::experimental::ExternalConnectionAcceptor& connections) {
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
  connection.fd = fd;
  connection.listener_fd = listener_fd;
  connections.HandleNewConnection(&connection);
}

}  // namespace nsa::metadata::server
