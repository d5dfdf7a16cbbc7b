#include "server/server_options.h"

#include <vector>

#include "grpcpp/resource_quota.h"

namespace nsa::metadata::server {
namespace {

constexpr int kMostReflectionThreads = 16;

class RemoveReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins, [](const auto& plugin) { return plugin->name() == "proto_server_reflection"; });
  }
};

}  // namespace

void BoundThreads(grpc::ServerBuilder& builder) {
  grpc::ResourceQuota quota("reflection");
  quota.SetMaxThreads(kMostReflectionThreads);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
}

std::unique_ptr<grpc::ServerBuilderOption> WithoutReflection() { return std::make_unique<RemoveReflection>(); }

}  // namespace nsa::metadata::server
