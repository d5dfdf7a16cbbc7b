// How far a long command has come.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

namespace nsa::metadata::client {

// A line on a terminal that is written over and over; nothing where stderr is not one.
class ProgressLine {
 public:
  ProgressLine() : on_(isatty(STDERR_FILENO) == 1) {}
  ~ProgressLine() {
    if (on_) std::fputs("\r\033[K", stderr);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Whether it is time to Show again.
  bool due() const { return on_ && std::chrono::steady_clock::now() - shown_ >= std::chrono::milliseconds(200); }
  void Show(const std::string& text) {
    shown_ = std::chrono::steady_clock::now();
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
  }

 private:
  const bool on_;
  std::chrono::steady_clock::time_point shown_;
};

}  // namespace nsa::metadata::client
