#include "client/doctor.h"

#include <algorithm>
#include <random>

#include "client/outputs.h"
#include "client/reference.h"

namespace nsa::metadata::client {
namespace {

constexpr int64_t kSequences = 64;
constexpr int64_t kFewestTokens = 64;
constexpr int64_t kMostTokens = 262'144;  // two outputs of more pass the limit of a unary reply
constexpr int kRepeats = 25;

// Lengths of up to `max_sequences` sequences, zeros and extensions longer than their sequence among them.
void Draw(std::mt19937_64& random, uint64_t max_sequences, std::vector<int32_t>* q, std::vector<int32_t>* s) {
  const uint64_t sequences = random() % (max_sequences + 1);
  const uint64_t longest = uint64_t{1} << random() % 9;
  q->clear();
  s->clear();
  for (uint64_t b = 0; b < sequences; ++b) {
    q->push_back(static_cast<int32_t>(random() % 4 == 0 ? 0 : random() % (longest + 1)));
    s->push_back(static_cast<int32_t>(random() % 10'000));
  }
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace

absl::Status CheckExpansions(Client& client, int64_t requests, Finding* finding) {
  std::mt19937_64 random(1);
  std::vector<int32_t> q;
  std::vector<int32_t> s;
  for (int64_t i = 0; i < requests; ++i) {
    Draw(random, i % 4 == 0 ? 600 : 20, &q, &s);
    Request request(i % 2 == 0 ? v1::SEQUENCE_MODE_CAUSAL : v1::SEQUENCE_MODE_REPEAT);
    request.extend_seq_lens = q;
    request.seq_lens = s;
    request.nsa_index_topk = i % 3 == 0 ? 2048 : static_cast<int32_t>(1 + random() % 100);
    request.request_id = random();
    for (const OutputField& output : AllOutputs()) request.outputs.push_back(output.output);
    const absl::StatusOr<v1::ExpandResponse> reply = client.Expand(request);
    if (!reply.ok()) return reply.status();
    ++finding->checked;
    const std::string difference = FirstDifference(*reply, Reference(request));
    if (difference.empty()) continue;
    if (finding->wrong++ == 0) finding->first_difference = difference;
  }
  return absl::OkStatus();
}

absl::Status TimeSteps(Client& client, Finding* finding) {
  for (int64_t tokens = kFewestTokens; tokens <= kMostTokens; tokens *= 2) {
    const std::vector<int32_t> q(kSequences, static_cast<int32_t>(tokens / kSequences));
    const std::vector<int32_t> s(kSequences, static_cast<int32_t>(tokens));
    Request request(v1::SEQUENCE_MODE_CAUSAL);
    request.extend_seq_lens = q;
    request.seq_lens = s;
    request.nsa_index_topk = 2048;
    request.include_timing = true;
    std::vector<double> microseconds;
    for (int i = 0; i < kRepeats; ++i) {
      const absl::StatusOr<v1::ExpandResponse> reply = client.Expand(request);
      if (!reply.ok()) return reply.status();
      microseconds.push_back(static_cast<double>(reply->timing().device_ns()) * 1e-3);
    }
    finding->times.push_back({tokens, Median(std::move(microseconds))});
  }
  return absl::OkStatus();
}

std::optional<int64_t> FasterFrom(const Finding& a, const Finding& b) {
  std::optional<int64_t> from;
  for (size_t i = std::min(a.times.size(), b.times.size()); i-- > 0;) {
    if (a.times[i].microseconds >= b.times[i].microseconds) break;
    from = a.times[i].tokens;
  }
  return from;
}

}  // namespace nsa::metadata::client
