// Places whose requests are the items of one stream.
#include <grpcpp/client_context.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/load_loop.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

class ItemSlot;

class StreamCall final : public LoadCall {
 public:
  StreamCall(LoadLoop& loop, const std::shared_ptr<grpc::Channel>& channel);

  // The slot of the item with kFirstBenchId plus the index.
  void Add(ItemSlot* slot) { slots_.push_back(slot); }
  // Any thread.
  void Send(ItemSlot& slot);
  void Close() override;

 private:
  void OnStarted(bool ok);
  void OnRead(bool ok);
  void OnWritten(bool ok);
  void OnFinished();
  void PumpWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  LoadLoop& loop_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer incoming_;
  ReplyCheck check_;  // of its own: other streams' items have the same ids
  grpc::Status status_;
  std::string fault_;  // an answer that is none of any item's
  std::vector<ItemSlot*> slots_;
  LoadTag started_{[this](bool ok) { OnStarted(ok); }};
  LoadTag read_{[this](bool ok) { OnRead(ok); }};
  LoadTag written_{[this](bool ok) { OnWritten(ok); }};
  LoadTag writes_done_{[](bool) {}};
  LoadTag finished_{[this](bool) { OnFinished(); }};

  Mutex mutex_;
  std::deque<ItemSlot*> to_write_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = true;  // until the call is started
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

class ItemSlot final : public LoadSlot {
 public:
  ItemSlot(StreamCall& stream, const grpc::ByteBuffer& request) : stream_(stream), request_(request) {}
  const grpc::ByteBuffer& request() const { return request_; }
  // Whether an answer is awaited. Guarded by the stream's mutex.
  bool under_way = false;

 private:
  void Start() override { stream_.Send(*this); }
  StreamCall& stream_;
  const grpc::ByteBuffer request_;
};

StreamCall::StreamCall(LoadLoop& loop, const std::shared_ptr<grpc::Channel>& channel)
    : loop_(loop), stub_(channel), check_(loop.request()) {
  const LoadClock::duration left = loop.schedule().end - LoadClock::now();
  context_.set_deadline(std::chrono::system_clock::now() + left + loop.schedule().timeout);
  stream_ = stub_.PrepareCall(&context_, "/nsa.metadata.v1.MetadataService/ExpandStream", &loop.queue());
  stream_->StartCall(&started_);
}

void StreamCall::OnStarted(bool) {
  stream_->Read(&incoming_, &read_);
  MutexLock lock(&mutex_);
  writing_ = false;
  PumpWrite();
}

void StreamCall::Send(ItemSlot& slot) {
  {
    MutexLock lock(&mutex_);
    slot.under_way = !ended_;
    if (!ended_) {
      to_write_.push_back(&slot);
      PumpWrite();
      return;
    }
  }
  loop_.Ended(
      slot, LoadClock::now(),
      {.request_id = 0, .status = absl::UnavailableError("the stream has ended"), .difference = {}, .timing = {}},
      /*is_last=*/true);
}

void StreamCall::PumpWrite() {
  if (writing_ || ended_ || to_write_.empty()) return;
  writing_ = true;
  stream_->Write(to_write_.front()->request(), &written_);
  to_write_.pop_front();
}

void StreamCall::OnWritten(bool) {
  MutexLock lock(&mutex_);
  writing_ = false;
  PumpWrite();
  // Nothing is to be begun on a stream that has ended: the queue may be shut down.
  if (closing_ && !writing_ && !ended_) stream_->WritesDone(&writes_done_);
}

void StreamCall::OnRead(bool ok) {
  const LoadClock::time_point when = LoadClock::now();
  if (!ok) {
    stream_->Finish(&status_, &finished_);
    return;
  }
  const std::optional<Outcome> outcome = check_.Stream(incoming_);
  incoming_.Clear();
  stream_->Read(&incoming_, &read_);
  if (!outcome) return;
  const uint64_t index = outcome->request_id - kFirstBenchId;
  if (index >= slots_.size()) {  // an answer to nobody: all that wait are in doubt
    fault_ = outcome->difference.empty() ? absl::StrCat("an answer to request_id ", outcome->request_id, ", never sent")
                                         : outcome->difference;
    context_.TryCancel();
    return;
  }
  ItemSlot& slot = *slots_[index];
  {
    MutexLock lock(&mutex_);
    if (!slot.under_way) return;
    slot.under_way = false;
  }
  loop_.Ended(slot, when, *outcome);
}

void StreamCall::OnFinished() {
  std::vector<ItemSlot*> left;
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    std::ranges::copy_if(slots_, std::back_inserter(left), [](const ItemSlot* slot) { return slot->under_way; });
  }
  absl::Status status = ToAbslStatus(status_);
  if (status.ok()) status = absl::UnavailableError("the stream has ended");
  for (ItemSlot* slot : left) {
    // The fault is one wrong answer, whosever it was.
    loop_.Ended(*slot, LoadClock::now(),
                {.request_id = 0, .status = status, .difference = std::exchange(fault_, {}), .timing = {}},
                /*is_last=*/true);
  }
  loop_.CallClosed();
}

void StreamCall::Close() {
  {
    MutexLock lock(&mutex_);
    if (ended_) return;
    closing_ = true;
    // An answer may be here before its request's write is known to be done.
    if (writing_) return;
  }
  stream_->WritesDone(&writes_done_);
}

}  // namespace

void LoadLoop::AddStream(const std::shared_ptr<grpc::Channel>& channel, int64_t in_flight) {
  auto stream = std::make_unique<StreamCall>(*this, channel);
  for (int64_t i = 0; i < in_flight; ++i) {
    Request item = request_.WithId(kFirstBenchId + static_cast<uint64_t>(i));
    v1::ExpandStreamRequest message;
    *message.mutable_expand() = ToProto(item);
    const grpc::Slice slice(message.SerializeAsString());
    auto slot = std::make_unique<ItemSlot>(*stream, grpc::ByteBuffer(&slice, 1));
    stream->Add(slot.get());
    slots_.push_back(std::move(slot));
  }
  calls_.push_back(std::move(stream));
}

}  // namespace nsa::metadata::client
