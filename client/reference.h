// The client's own expansion, written from the specification: what replies are checked against.
#pragma once

#include <string>

#include "client/request.h"

namespace nsa::metadata::client {

// The reply that a server has to give to `request`, without timing. Sums are 64-bit; a value that passes int32 is cut
// to its low 32 bits, and a server refuses such a request instead. `extend_seq_lens` and `seq_lens` must have the same
// size and no negative value.
v1::ExpandResponse Reference(const Request& request);

// Where `got` differs from `want`, as "positions[3]: got 7, want 8"; empty if it doesn't. Timing is not compared.
std::string FirstDifference(const v1::ExpandResponse& got, const v1::ExpandResponse& want);

}  // namespace nsa::metadata::client
