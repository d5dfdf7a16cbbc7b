// A real server in this process, on free ports of the loopback.
#pragma once

#include <memory>
#include <string>

#include "grpcpp/channel.h"
#include "kernels/backend.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/options.h"
#include "server/server.h"

namespace nsa::metadata::testing {

// The options every test begins with: free ports.
server::Options LoopbackOptions();

class RunningServer {
 public:
  // Fails the test when it does not start. `backend` null: the one that the options name.
  explicit RunningServer(const server::Options& options = LoopbackOptions(),
                         std::unique_ptr<kernels::Backend> backend = nullptr, server::Failpoints* failpoints = nullptr);

  server::Server& server() { return *server_; }
  // A new connection's channel.
  std::shared_ptr<grpc::Channel> Connect() const;
  std::unique_ptr<v1::MetadataService::Stub> Stub() const { return v1::MetadataService::NewStub(Connect()); }
  std::string target() const { return server_->listen_addresses().front(); }

 private:
  std::unique_ptr<server::Server> server_;
};

// GET http://address/path; its status line, headers and body.
std::string HttpGet(const std::string& address, const std::string& path);

// The value of a metric's line in the text format, `series` being the whole of it before the value; -1 when there is
// none.
double MetricValue(const std::string& text, const std::string& series);

}  // namespace nsa::metadata::testing
