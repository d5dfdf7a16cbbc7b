#include "server/file_watcher.h"

#include <utility>

#include "absl/hash/hash.h"
#include "server/read_file.h"

namespace nsa::metadata::server {

FileWatcher::FileWatcher(std::vector<std::string> paths, Clock::duration period, std::function<bool()> changed)
    : paths_(std::move(paths)), period_(period), changed_(std::move(changed)), seen_(Look()) {
  thread_ = std::thread([this] { Run(); });
}

FileWatcher::~FileWatcher() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    stop_changed_.SignalAll();
  }
  thread_.join();
}

size_t FileWatcher::Look() const {
  std::vector<std::string> contents;
  for (const std::string& path : paths_) {
    absl::StatusOr<std::string> text = ReadFile("", path);
    contents.push_back(text.ok() ? *std::move(text) : std::string(text.status().message()));
  }
  return absl::HashOf(contents);
}

void FileWatcher::Run() {
  for (bool done = true;;) {
    {
      MutexLock lock(&mutex_);
      const TimePoint next = Clock::now() + period_;
      while (!stop_ && Clock::now() < next) stop_changed_.WaitUntil(mutex_, next);
      if (stop_) return;
    }
    const size_t seen = Look();
    // Two looks that differ read some files before they were replaced and some after.
    if ((seen == seen_ && done) || seen != Look()) continue;
    seen_ = seen;
    done = changed_();
  }
}

}  // namespace nsa::metadata::server
