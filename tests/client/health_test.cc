#include "client/health.h"

#include <gtest/gtest.h>

#include "tests/client/fake_server.h"

namespace nsa::metadata::client {
namespace {

const ClientOptions kOptions = {.timeout = absl::Seconds(10)};

TEST(HealthTest, TellsAServingServerFromOneThatIsNot) {
  FakeServer server;
  const auto serving = CheckHealth(server.target(), "", kOptions);
  ASSERT_TRUE(serving.ok()) << serving.status();
  EXPECT_EQ(*serving, ServingStatus::kServing) << ServingStatusName(*serving);

  server.SetServing(false);
  const auto not_serving = CheckHealth(server.target(), "", kOptions);
  ASSERT_TRUE(not_serving.ok()) << not_serving.status();
  EXPECT_EQ(*not_serving, ServingStatus::kNotServing) << ServingStatusName(*not_serving);
}

TEST(HealthTest, AsksForTheNamedService) {
  FakeServer server;
  const auto known = CheckHealth(server.target(), v1::MetadataService::service_full_name(), kOptions);
  ASSERT_TRUE(known.ok()) << known.status();
  EXPECT_EQ(*known, ServingStatus::kServing) << ServingStatusName(*known);
  const auto unknown = CheckHealth(server.target(), "no.such.Service", kOptions);
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kNotFound) << unknown.status();
}

}  // namespace
}  // namespace nsa::metadata::client
