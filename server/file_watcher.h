// Tells when files have become others.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/clock.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// Reads them from time to time: what is mounted into a container is replaced in ways that inotify does not see.
class FileWatcher {
 public:
  // Calls `changed`, on a thread of its own, whenever the contents of some of `paths` are others than at its last look,
  // the first of which is its construction; once when several are replaced together. While it returns false it is
  // called again at each look.
  FileWatcher(std::vector<std::string> paths, Clock::duration period, std::function<bool()> changed);
  // Waits for a call that is under way.
  ~FileWatcher();
  FileWatcher(const FileWatcher&) = delete;

 private:
  // A hash of their contents, of which private keys are.
  size_t Look() const;
  void Run();

  const std::vector<std::string> paths_;
  const Clock::duration period_;
  const std::function<bool()> changed_;
  Mutex mutex_;
  CondVar stop_changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  size_t seen_;
  std::thread thread_;
};

}  // namespace nsa::metadata::server
