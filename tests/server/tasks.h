// Tasks whose answers a test can look at, and a lane that does what a test says.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "server/mutex.h"
#include "server/output_pool.h"
#include "server/task.h"

namespace nsa::metadata::server {

// Thread-safe.
class RecordingResponder final : public Responder {
 public:
  bool cancelled() const override { return cancelled_; }
  void Reply(Messages reply, const Journey&) override {
    MutexLock lock(&mutex_);
    ++answers_;
    answered_.SignalAll();
    reply_ = reply.front().bytes;
  }
  void Refuse(const Refusal& refusal) override {
    MutexLock lock(&mutex_);
    ++answers_;
    answered_.SignalAll();
    refusal_ = refusal;
  }

  // Before its task is submitted.
  void Cancel() { cancelled_ = true; }
  int answers() const {
    MutexLock lock(&mutex_);
    return answers_;
  }
  std::optional<Refusal> refusal() const {
    MutexLock lock(&mutex_);
    return refusal_;
  }
  std::optional<grpc::ByteBuffer> reply() const {
    MutexLock lock(&mutex_);
    return reply_;
  }
  void AwaitAnswer() const {
    MutexLock lock(&mutex_);
    while (answers_ == 0) answered_.Wait(mutex_);
  }

 private:
  mutable Mutex mutex_;
  mutable CondVar answered_;
  bool cancelled_ = false;
  int answers_ = 0;
  std::optional<grpc::ByteBuffer> reply_;
  std::optional<Refusal> refusal_;
};

// A task of `sequences` sequences with one token each, admitted at `admitted`.
inline std::unique_ptr<Task> MakeTask(RecordingResponder& responder, OutputPool& pool, int64_t sequences = 1,
                                      TimePoint admitted = TimePoint()) {
  auto task = std::make_unique<Task>();
  task->AnswerTo(responder);
  v1::ExpandRequest request;
  for (int64_t b = 0; b < sequences; ++b) {
    request.add_extend_seq_lens(1);
    request.add_seq_lens(static_cast<int32_t>(100 + b));
  }
  request.set_nsa_index_topk(2048);
  Validate(request, {}, Framing::kUnary, &task->expansion);
  task->TakeLengths(&request);
  task->permit = pool.Reserve(task->expansion.layout.block_bytes());
  task->times.admitted = admitted;
  return task;
}

}  // namespace nsa::metadata::server
