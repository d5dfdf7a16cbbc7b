#include "server/callers.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

// Behind proxies of `blocks`.
Callers Behind(std::vector<std::string> blocks) {
  Options options;
  options.trusted_proxies = std::move(blocks);
  options.caller_metadata = "x-caller";
  return Callers(options);
}

TEST(CallersTest, AnIpv4AddressIsACallerWhateverItsPort) {
  const Callers callers((Options()));
  const Account account = callers.AccountOf("ipv4:10.0.0.1:5000", std::nullopt);
  EXPECT_NE(account, kNoAccount);
  EXPECT_EQ(callers.AccountOf("ipv4:10.0.0.1:6000", std::nullopt), account);
  EXPECT_NE(callers.AccountOf("ipv4:10.0.0.2:5000", std::nullopt), account);
  EXPECT_EQ(callers.AccountOf("ipv6:%5B::ffff:10.0.0.1%5D:5000", std::nullopt), account) << "the same, as IPv6";
}

TEST(CallersTest, TheFirst64BitsOfAnIpv6AddressAreACaller) {
  const Callers callers((Options()));
  const Account account = callers.AccountOf("ipv6:%5B2001:db8:1:2::1%5D:5000", std::nullopt);
  EXPECT_NE(account, kNoAccount);
  EXPECT_EQ(callers.AccountOf("ipv6:%5B2001:db8:1:2:ffff::2%5D:1", std::nullopt), account);
  EXPECT_NE(callers.AccountOf("ipv6:%5B2001:db8:1:3::1%5D:5000", std::nullopt), account);
  EXPECT_NE(callers.AccountOf("ipv6:%5Bfe80::1%25eth0%5D:5000", std::nullopt), kNoAccount) << "one with a scope";
}

TEST(CallersTest, AllPeersOfUnixSocketsAreOneCaller) {
  const Callers callers((Options()));
  EXPECT_NE(callers.AccountOf("unix:", std::nullopt), kNoAccount);
  for (const char* peer : {"unix:/run/x", "", "ipv4:"}) {
    EXPECT_EQ(callers.AccountOf(peer, std::nullopt), callers.AccountOf("unix:", std::nullopt)) << peer;
  }
}

TEST(CallersTest, ATrustedProxySaysWhoItsCallersAreAndNobodyElseMay) {
  const Callers callers = Behind({"10.1.0.0/16", "fd00::/8"});
  const Account ann = callers.AccountOf("ipv4:10.1.2.3:1", "ann");
  EXPECT_EQ(callers.AccountOf("ipv4:10.1.9.9:2", "ann"), ann);
  EXPECT_EQ(callers.AccountOf("ipv6:%5Bfd12::1%5D:2", "ann"), ann);
  EXPECT_NE(callers.AccountOf("ipv4:10.1.2.3:1", "ben"), ann);
  EXPECT_EQ(callers.AccountOf("ipv4:10.1.2.3:1", std::nullopt), callers.AccountOf("ipv4:10.1.2.3:9", std::nullopt));
  EXPECT_EQ(callers.AccountOf("ipv4:10.2.2.3:1", "ann"), callers.AccountOf("ipv4:10.2.2.3:1", "ben"))
      << "no trusted proxy: it is a caller itself";
}

TEST(CallersTest, ACertificatesNameGoesBeforeTheAddressAndAProxysWordBeforeBoth) {
  const Callers callers = Behind({"10.1.0.0/16"});
  const Account ann = callers.AccountOf("ipv4:10.2.0.1:1", std::nullopt, "ann");
  EXPECT_EQ(callers.AccountOf("ipv4:10.9.9.9:2", "ben", "ann"), ann) << "no trusted proxy";
  EXPECT_EQ(callers.AccountOf("unix:", std::nullopt, "ann"), ann);
  EXPECT_NE(callers.AccountOf("ipv4:10.2.0.1:1", std::nullopt, "ben"), ann);
  EXPECT_EQ(callers.AccountOf("ipv4:10.1.0.1:1", "ann", "the proxy"), ann);
}

TEST(CallersTest, ManyCallersHaveManyAccounts) {
  const Callers callers((Options()));
  std::set<Account> accounts;
  for (int i = 0; i < 256; ++i) accounts.insert(callers.AccountOf(absl::StrCat("ipv4:10.0.0.", i, ":1"), std::nullopt));
  EXPECT_GT(accounts.size(), 240u);
}

TEST(AddressBlockTest, HoldsTheAddressesThatBeginWithItsBits) {
  // Where it does, a caller is who the metadata say.
  const auto contains = [](const char* block, const char* address) {
    const Callers callers = Behind({block});
    const std::string peer = absl::StrCat("ipv4:", address, ":1");
    return callers.AccountOf(peer, "ann") != callers.AccountOf(peer, "ben");
  };
  EXPECT_TRUE(contains("10.0.0.0/8", "10.255.0.1"));
  EXPECT_FALSE(contains("10.0.0.0/8", "11.0.0.1"));
  EXPECT_TRUE(contains("192.168.4.0/22", "192.168.7.255"));
  EXPECT_FALSE(contains("192.168.4.0/22", "192.168.8.0"));
  EXPECT_TRUE(contains("10.0.0.1", "10.0.0.1"));
  EXPECT_FALSE(contains("10.0.0.1", "10.0.0.2"));
  EXPECT_TRUE(contains("0.0.0.0/0", "203.0.113.9"));
}

TEST(AddressBlockTest, SaysWhatIsWrong) {
  for (const char* text : {"", "x", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "::/129", "10.0.0", "10.0.0.0/8/8"}) {
    const absl::StatusOr<AddressBlock> block = AddressBlock::Parse(text);
    ASSERT_FALSE(block.ok()) << text;
    EXPECT_NE(std::string(block.status().message()).find(absl::StrCat("'", text, "'")), std::string::npos)
        << block.status();
  }
}

}  // namespace
}  // namespace nsa::metadata::server
