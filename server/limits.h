// The limits of a server, as its clients and its metrics are told them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "nsa/metadata/v1/metadata.pb.h"
#include "server/options.h"

namespace nsa::metadata::server {

v1::Limits ToProto(const Options& options);

// Every limit that is set: the field's name and its value, durations in seconds.
std::vector<std::pair<std::string, double>> NamedLimits(const Options& options);

}  // namespace nsa::metadata::server
