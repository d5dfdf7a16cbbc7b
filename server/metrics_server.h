// The HTTP port: the status page, /metrics, /healthz, /readyz.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/address.h"

class CivetServer;
class CivetHandler;

namespace prometheus {
class Collectable;
}

namespace nsa::metadata::server {

// Answers from its construction to its destruction, which waits for requests at hand.
class MetricsServer {
 public:
  // `sources` are what /metrics shows, `ready` whether /readyz says 200 or 503, `status_json` what the page at / asks
  // for; all outlive the server. UNAVAILABLE naming the address when it can't listen there.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const Address& address,
                                                              std::vector<const prometheus::Collectable*> sources,
                                                              std::function<bool()> ready,
                                                              std::function<std::string()> status_json);
  ~MetricsServer();

  // With the port that was taken.
  const Address& address() const { return address_; }

 private:
  MetricsServer() = default;
  void AddHandler(const char* path, std::unique_ptr<CivetHandler> handler);

  Address address_;
  std::vector<std::unique_ptr<CivetHandler>> handlers_;
  std::unique_ptr<CivetServer> server_;
};

}  // namespace nsa::metadata::server
