// What the metrics port shows to people.
#pragma once

#include <string>
#include <string_view>

#include "nsa/metadata/status/v1/status.pb.h"
#include "server/slow_calls.h"

namespace nsa::metadata::server {

// The page: HTML with all that it needs inside. It asks for /status.json again and again.
std::string_view StatusPage();

// Adds the slow calls.
void Describe(const SlowCalls& slow_calls, status::v1::Status& status);

std::string ToJson(const status::v1::Status& status);

}  // namespace nsa::metadata::server
