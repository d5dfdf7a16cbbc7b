#include "server/limits.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/duration.pb.h>

namespace nsa::metadata::server {
namespace {

void Set(absl::Duration from, google::protobuf::Duration* to) {
  absl::Duration rest;
  to->set_seconds(absl::IDivDuration(from, absl::Seconds(1), &rest));
  to->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

double Value(const v1::Limits& limits, const google::protobuf::FieldDescriptor& field) {
  using Field = google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *limits.GetReflection();
  switch (field.cpp_type()) {
    case Field::CPPTYPE_INT64:
      return static_cast<double>(reflection.GetInt64(limits, &field));
    case Field::CPPTYPE_DOUBLE:
      return reflection.GetDouble(limits, &field);
    default: {
      const auto& duration = static_cast<const google::protobuf::Duration&>(reflection.GetMessage(limits, &field));
      return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
    }
  }
}

}  // namespace

v1::Limits ToProto(const Options& options) {
  v1::Limits limits;
  limits.set_max_sequences(options.request.max_sequences);
  limits.set_max_tokens(options.request.max_tokens);
  limits.set_max_reply_bytes(options.request.max_reply_bytes);
  limits.set_max_unary_reply_bytes(options.request.max_unary_reply_bytes);
  limits.set_output_budget_bytes(options.output_budget_bytes);
  limits.set_lengths_budget_bytes(options.lengths_budget_bytes);
  limits.set_max_queue_requests(options.batch.max_queue_requests);
  limits.set_caller_share(options.caller_share);
  limits.set_max_receive_message(options.connection.max_receive_message);
  limits.set_max_metadata_bytes(options.connection.max_metadata_bytes);
  limits.set_max_undelivered_bytes(options.connection.max_undelivered_bytes);
  limits.set_max_connections(options.connection.max_connections);
  limits.set_max_streams_per_connection(options.connection.max_streams_per_connection);
  limits.set_max_stream_inflight(options.max_stream_inflight);
  Set(options.max_rpc_duration, limits.mutable_max_rpc_duration());
  Set(options.stream_idle_timeout, limits.mutable_stream_idle_timeout());
  Set(options.write_stall_timeout, limits.mutable_write_stall_timeout());
  Set(options.gpu_timeout, limits.mutable_gpu_timeout());
  Set(options.connection.max_connection_age, limits.mutable_max_connection_age());
  Set(options.connection.max_connection_age_grace, limits.mutable_max_connection_age_grace());
  Set(options.connection.max_connection_idle, limits.mutable_max_connection_idle());
  Set(options.connection.handshake_timeout, limits.mutable_handshake_timeout());
  Set(options.connection.keepalive_time, limits.mutable_keepalive_time());
  Set(options.connection.keepalive_timeout, limits.mutable_keepalive_timeout());
  return limits;
}

std::vector<std::pair<std::string, double>> NamedLimits(const Options& options) {
  const v1::Limits limits = ToProto(options);
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  limits.GetReflection()->ListFields(limits, &fields);
  std::vector<std::pair<std::string, double>> named;
  for (const auto* field : fields) named.emplace_back(field->name(), Value(limits, *field));
  return named;
}

}  // namespace nsa::metadata::server
