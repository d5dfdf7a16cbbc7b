#include "client/expand_report.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/json.h"
#include "client/outputs.h"

namespace nsa::metadata::client {
namespace {

// The sequence of each of the first `rows` tokens.
std::vector<int32_t> SequencesOf(std::span<const int32_t> extend_seq_lens, int64_t rows) {
  std::vector<int32_t> sequences;
  for (size_t b = 0; b < extend_seq_lens.size(); ++b) {
    const int64_t left = rows - static_cast<int64_t>(sequences.size());
    sequences.insert(sequences.end(), std::clamp<int64_t>(extend_seq_lens[b], 0, left), static_cast<int32_t>(b));
  }
  return sequences;
}

// One column, its values aligned to the right under its name.
class Column {
 public:
  Column(std::string name, std::span<const int32_t> values) : cells_{std::move(name)} {
    for (const int32_t value : values) cells_.push_back(absl::StrCat(value));
    for (const std::string& cell : cells_) width_ = std::max(width_, cell.size());
  }

  // Row 0 is the name; empty where the column has ended.
  std::string Cell(size_t row) const {
    return absl::StrFormat("%*s", static_cast<int>(width_), row < cells_.size() ? cells_[row] : "");
  }

 private:
  std::vector<std::string> cells_;
  size_t width_ = 0;
};

std::span<const int32_t> FirstValues(const Values& values, int64_t count) {
  return {values.data(), static_cast<size_t>(std::min<int64_t>(values.size(), count))};
}

std::vector<Column> ColumnsOf(const Request& request, const v1::ExpandResponse& response, int64_t rows) {
  std::vector<int32_t> tokens(rows);
  for (int64_t t = 0; t < rows; ++t) tokens[t] = static_cast<int32_t>(t);
  std::vector<Column> columns = {{"t", tokens}, {"batch", SequencesOf(request.extend_seq_lens, rows)}};
  for (const OutputField* field : AskedOutputs(request.outputs)) {
    if (!field->per_token) continue;
    columns.emplace_back(std::string(field->name), FirstValues((response.*field->get)(), rows));
  }
  return columns;
}

std::string RunningSums(const Request& request, const v1::ExpandResponse& response, int64_t max_rows) {
  std::string text;
  for (const OutputField* field : AskedOutputs(request.outputs)) {
    if (field->per_token) continue;
    const Values& values = (response.*field->get)();
    const std::span<const int32_t> shown = FirstValues(values, max_rows);
    absl::StrAppend(&text, std::string(field->name), ": ", absl::StrJoin(shown, " "));
    const int64_t more = values.size() - static_cast<int64_t>(shown.size());
    absl::StrAppend(&text, more > 0 ? absl::StrCat(" … ", more, " more") : "", "\n");
  }
  return text;
}

std::string TimingLine(const v1::Timing& timing) {
  return absl::StrFormat(
      "timing, us: parse %.1f, admit %.1f, queue %.1f, pack %.1f, device %.1f, frame %.1f; "
      "in a batch of %d requests, %d tokens, by %s\n",
      timing.parse_ns() / 1e3, timing.admit_ns() / 1e3, timing.queue_ns() / 1e3, timing.pack_ns() / 1e3,
      timing.device_ns() / 1e3, timing.frame_ns() / 1e3, timing.batch_requests(), timing.batch_tokens(),
      v1::Backend_Name(timing.backend()));
}

JsonObject TimingJson(const v1::Timing& timing) {
  JsonObject json;
  json.Add("parse_ns", timing.parse_ns()).Add("admit_ns", timing.admit_ns()).Add("queue_ns", timing.queue_ns());
  json.Add("pack_ns", timing.pack_ns()).Add("device_ns", timing.device_ns()).Add("frame_ns", timing.frame_ns());
  json.Add("batch_requests", uint64_t{timing.batch_requests()}).Add("batch_tokens", uint64_t{timing.batch_tokens()});
  return json.Add("backend", v1::Backend_Name(timing.backend()));
}

}  // namespace

std::string ExpandTable(const Request& request, const v1::ExpandResponse& response, int64_t max_rows) {
  const int64_t rows = std::clamp<int64_t>(response.total_tokens(), 0, max_rows);
  const std::vector<Column> columns = ColumnsOf(request, response, rows);
  std::string text;
  for (int64_t row = 0; row <= rows; ++row) {
    const auto append = [row](std::string* out, const Column& column) { out->append(column.Cell(row)); };
    absl::StrAppend(&text, absl::StrJoin(columns, "  ", append), "\n");
  }
  if (response.total_tokens() > rows) absl::StrAppend(&text, "… ", response.total_tokens() - rows, " more\n");
  absl::StrAppend(&text, RunningSums(request, response, max_rows));
  if (response.has_timing()) absl::StrAppend(&text, TimingLine(response.timing()));
  return text;
}

std::string ExpandJson(const Request& request, const v1::ExpandResponse& response) {
  JsonObject json;
  json.Add("request_id", response.request_id()).Add("total_tokens", response.total_tokens());
  json.Add("mode", v1::SequenceMode_Name(response.mode()));
  if (response.has_timing()) json.Add("timing", TimingJson(response.timing()));
  for (const OutputField* field : AskedOutputs(request.outputs)) {
    const Values& values = (response.*field->get)();
    json.AddJson(std::string(field->name), JsonArray(FirstValues(values, values.size())));
  }
  return json.str() + "\n";
}

}  // namespace nsa::metadata::client
