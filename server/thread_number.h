// Small numbers for threads, to give each its own of something.
#pragma once

#include <cstddef>

namespace nsa::metadata::server {

// The calling thread's number: no other thread has it until this one has ended. As small as can be.
size_t ThreadNumber();

}  // namespace nsa::metadata::server
