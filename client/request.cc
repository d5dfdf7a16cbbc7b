#include "client/request.h"

namespace nsa::metadata::client {

v1::ExpandRequest ToProto(const Request& request) {
  v1::ExpandRequest proto;
  proto.set_request_id(request.request_id);
  proto.mutable_extend_seq_lens()->Add(request.extend_seq_lens.begin(), request.extend_seq_lens.end());
  proto.mutable_seq_lens()->Add(request.seq_lens.begin(), request.seq_lens.end());
  proto.set_nsa_index_topk(request.nsa_index_topk);
  proto.set_mode(request.mode);
  for (const v1::Output output : request.outputs) proto.add_outputs(output);
  proto.set_include_timing(request.include_timing);
  return proto;
}

}  // namespace nsa::metadata::client
