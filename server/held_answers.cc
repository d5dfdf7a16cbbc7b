#include "server/held_answers.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>

namespace nsa::metadata::server {
namespace {

// An error is that of a descriptor that is closed, or no TCP connection's any more.
bool SetCork(int fd, int on) { return setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on) == 0; }

}  // namespace

void HeldAnswers::Hold(DeliverySlot slot) {
  const int fd = descriptors_.Of(slot);
  if (fd < 0 || held_.size() == kMost || std::ranges::find(held_, fd) != held_.end()) return;
  if (!SetCork(fd, 1)) return;
  if (held_.empty()) {
    since_ = Clock::now();
    of_this_thread_ = this;
  }
  held_.push_back(fd);
}

void HeldAnswers::Release() {
  if (held_.empty()) return;
  for (const int fd : held_) SetCork(fd, 0);
  held_.clear();
  if (of_this_thread_ == this) of_this_thread_ = nullptr;
}

}  // namespace nsa::metadata::server
