// How a program is told to stop.
#pragma once

#include <signal.h>

namespace nsa::metadata::server {

// Keeps SIGTERM and SIGINT for sigwait, in this thread and those it makes from then on, and has a connection that is
// gone show as an error. Returns what to wait for.
inline sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

}  // namespace nsa::metadata::server
