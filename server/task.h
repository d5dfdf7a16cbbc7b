// One admitted request on its way through the server.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "google/protobuf/repeated_field.h"
#include "server/account.h"
#include "server/clock.h"
#include "server/codec.h"
#include "server/journey.h"
#include "server/lengths_budget.h"
#include "server/output_pool.h"
#include "server/recycled.h"
#include "server/refusal.h"

namespace nsa::metadata::server {

// The call or stream item behind a task. Exactly one of Reply and Refuse is called, once, from any thread; the
// responder may be gone when it returns.
class Responder {
 public:
  // Whether the caller is known to have given up. Any thread.
  virtual bool cancelled() const = 0;
  virtual void Reply(Messages reply, const Journey& journey) = 0;
  virtual void Refuse(const Refusal& refusal) = 0;

 protected:
  ~Responder() = default;
};

// When a task passed each step.
struct StageTimes {
  TimePoint arrived;
  TimePoint parsed;
  TimePoint admitted;
  TimePoint launched;  // its batch was closed
};

// Answers exactly once: with Reply, with Refuse, or, when neither was called, INTERNAL from the destructor. Not
// thread-safe.
class Task : public Recycled<Task> {
 public:
  Task() = default;
  ~Task() {
    if (responder_ != nullptr) Refuse(InternalFault("the request was dropped"));
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  // Who is to be answered; outlives the answer's beginning. A task without one is nobody's and needs none.
  void AnswerTo(Responder& responder) { responder_ = &responder; }
  bool has_responder() const { return responder_ != nullptr; }

  // Makes the lengths that `expansion` has in `request` this object's own.
  void TakeLengths(v1::ExpandRequest* request);
  // The same of lengths that are somebody else's.
  void CopyLengths();
  // A caller's own, where it is the earlier one.
  void AddCallersDeadline(TimePoint at) {
    if (at >= deadline) return;
    deadline = at;
    deadline_is_callers_ = true;
  }
  // Why it is not launched at `now`, when its deadline has passed.
  Refusal Late(TimePoint now) const {
    return DeadlinePassed(deadline_is_callers_, deadline - times.arrived, now - times.arrived);
  }

  // What they take beside the object: 8 bytes a sequence or, as the decoder's arrays grow, up to twice that.
  int64_t lengths_bytes() const {
    return (int64_t{extend_seq_lens_.Capacity()} + seq_lens_.Capacity()) * static_cast<int64_t>(sizeof(int32_t));
  }
  bool cancelled() const { return responder_->cancelled(); }
  void Reply(Messages reply, const Journey& journey) {
    std::exchange(responder_, nullptr)->Reply(std::move(reply), journey);
  }
  void Refuse(const Refusal& refusal) { std::exchange(responder_, nullptr)->Refuse(refusal); }

  Expansion expansion;
  Account account = kNoAccount;
  LengthsPermit lengths_permit;
  OutputPermit permit;
  TimePoint deadline = TimePoint::max();
  StageTimes times;

 private:
  // Both arrays of some hundred sequences; those of more stay in the memory they were decoded to.
  static constexpr size_t kLengthsHere = 256;

  // Copies lengths that have room in lengths_; false if they have none.
  bool CopyFewLengths();

  Responder* responder_ = nullptr;
  bool deadline_is_callers_ = false;
  google::protobuf::RepeatedField<int32_t> extend_seq_lens_;
  google::protobuf::RepeatedField<int32_t> seq_lens_;
  int32_t lengths_[kLengthsHere];
};

inline bool Task::CopyFewLengths() {
  const size_t num_sequences = expansion.seq_lens.size();
  if (2 * num_sequences > kLengthsHere) return false;
  std::copy_n(expansion.extend_seq_lens.begin(), num_sequences, lengths_);
  std::copy_n(expansion.seq_lens.begin(), num_sequences, lengths_ + num_sequences);
  expansion.extend_seq_lens = {lengths_, num_sequences};
  expansion.seq_lens = {lengths_ + num_sequences, num_sequences};
  return true;
}

inline void Task::TakeLengths(v1::ExpandRequest* request) {
  if (CopyFewLengths()) return;
  const size_t num_sequences = expansion.seq_lens.size();
  extend_seq_lens_.Swap(request->mutable_extend_seq_lens());
  seq_lens_.Swap(request->mutable_seq_lens());
  expansion.extend_seq_lens = {extend_seq_lens_.data(), num_sequences};
  expansion.seq_lens = {seq_lens_.data(), num_sequences};
}

inline void Task::CopyLengths() {
  if (CopyFewLengths()) return;
  const size_t num_sequences = expansion.seq_lens.size();
  extend_seq_lens_.Assign(expansion.extend_seq_lens.begin(), expansion.extend_seq_lens.end());
  seq_lens_.Assign(expansion.seq_lens.begin(), expansion.seq_lens.end());
  expansion.extend_seq_lens = {extend_seq_lens_.data(), num_sequences};
  expansion.seq_lens = {seq_lens_.data(), num_sequences};
}

}  // namespace nsa::metadata::server
