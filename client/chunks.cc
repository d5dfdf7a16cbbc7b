#include "client/chunks.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/outputs.h"

namespace nsa::metadata::client {
namespace {

absl::Status Unfit(uint64_t request_id, const std::string& what, int64_t got, int64_t want) {
  return absl::InternalError(
      absl::StrCat("the server's chunks of request_id ", request_id, " don't fit: ", what, " ", got, ", want ", want));
}

// The tokens that `expansion`'s arrays have entries for; nothing if it has only cu_seqlens_q and cu_seqlens_k, or no
// array at all. nsa_cu_seqlens_k has one entry more than tokens only at the end.
std::optional<int64_t> TokensOf(const v1::ExpandResponse& expansion, bool is_whole) {
  for (const OutputField& field : AllOutputs()) {
    const int size = (expansion.*field.get)().size();
    if (field.per_token && size > 0) return size;
  }
  const int sums = expansion.nsa_cu_seqlens_k_size();
  return sums > 0 ? std::optional(sums - (is_whole ? 1 : 0)) : std::nullopt;
}

}  // namespace

absl::Status Chunks::Append(v1::ExpandStreamResponse& message) {
  const uint64_t id = message.expansion().request_id();
  if (message.first_token() != tokens_) return Unfit(id, "first_token", message.first_token(), tokens_);
  if (begun_) {
    whole_.MergeFrom(message.expansion());
  } else {
    // Most expansions are in one piece: no copy.
    whole_ = std::move(*message.mutable_expansion());
    begun_ = true;
  }
  const std::optional<int64_t> tokens = TokensOf(whole_, message.last_chunk());
  if (!tokens.has_value()) return absl::OkStatus();
  tokens_ = *tokens;
  for (const OutputField& field : AllOutputs()) {
    const int size = (whole_.*field.get)().size();
    if (field.per_token && size > 0 && size != tokens_) return Unfit(id, std::string(field.name), size, tokens_);
  }
  const int64_t sums = tokens_ + (message.last_chunk() ? 1 : 0);
  if (whole_.nsa_cu_seqlens_k_size() > 0 && whole_.nsa_cu_seqlens_k_size() != sums) {
    return Unfit(id, "nsa_cu_seqlens_k", whole_.nsa_cu_seqlens_k_size(), sums);
  }
  const bool too_few = message.last_chunk() && tokens_ < whole_.total_tokens();
  if (too_few || tokens_ > whole_.total_tokens()) return Unfit(id, "tokens", tokens_, whole_.total_tokens());
  return absl::OkStatus();
}

}  // namespace nsa::metadata::client
