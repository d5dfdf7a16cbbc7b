// A backend whose lanes wait at a gate, so that a test decides when work ends.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "server/mutex.h"

namespace nsa::metadata::testing {

// Thread-safe.
class Gate {
 public:
  // Lets all batches through, those that wait and those to come.
  void Open();
  // Blocks until that many batches have come to the gate.
  void AwaitStarted(int batches);
  // Requests in all the batches that came.
  int requests() const;

  // What a lane calls.
  void Pass(int requests);

 private:
  mutable server::Mutex mutex_;
  server::CondVar changed_;
  bool open_ = false;
  int started_ = 0;
  int requests_ = 0;
};

// Computes as the CPU backend does, once `gate`, which outlives it, lets a batch through.
std::unique_ptr<kernels::Backend> MakeGatedBackend(Gate& gate);

}  // namespace nsa::metadata::testing
