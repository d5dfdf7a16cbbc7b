#include "client/local_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/time/clock.h"

namespace nsa::metadata::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kServing[] = "echo 'now info serving: grpc=x' >&2\n";

// A program in place of the server, in a folder of this test's own.
class Script {
 public:
  explicit Script(const std::string& lines) : folder_(::testing::TempDir() + "nsa_metadata_script_XXXXXX") {
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    std::ofstream(program()) << "#!/bin/sh\n" << lines;
    EXPECT_EQ(chmod(program().c_str(), 0700), 0);
  }
  ~Script() { std::filesystem::remove_all(folder_); }
  std::string program() const { return folder_ + "/server"; }
  // A file that the script names "$0" with this at its end.
  std::string file(const std::string& suffix) const { return program() + suffix; }

 private:
  std::string folder_;
};

// Sets a variable of the environment for its lifetime.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* const before = getenv(name)) before_ = before;
    setenv(name, value, 1);
  }
  ~Variable() {
    if (before_.empty()) {
      unsetenv(name_);
    } else {
      setenv(name_, before_.c_str(), 1);
    }
  }

 private:
  const char* const name_;
  std::string before_;
};

bool Appears(const std::string& path) {
  const absl::Time end = absl::Now() + absl::Seconds(20);
  while (!std::filesystem::exists(path) && absl::Now() < end) absl::SleepFor(absl::Milliseconds(10));
  return std::filesystem::exists(path);
}

TEST(LocalServerTest, HasNoSettingOfTheEnvironments) {
  const Script script("env >\"$0.env\"\n" + std::string(kServing) + "exec sleep 60\n");
  const Variable setting("NSA_METADATA_LOG_FORMAT", "json");
  const Variable other("NSA_METADATAS", "kept");
  const auto server = LocalServer::Start(script.program(), {});
  ASSERT_TRUE(server.ok()) << server.status();
  std::stringstream environment;
  environment << std::ifstream(script.file(".env")).rdbuf();
  EXPECT_THAT(environment.str(), AllOf(HasSubstr("PATH="), HasSubstr("NSA_METADATAS=kept")));
  EXPECT_THAT(environment.str(), Not(HasSubstr("NSA_METADATA_LOG_FORMAT")));
}

// A pipe holds 64 KiB.
TEST(LocalServerTest, IsNotHeldUpByALongLog) {
  const Script script(kServing + std::string("head -c 1000000 /dev/zero >&2\n: >\"$0.done\"\nexec sleep 60\n"));
  const auto server = LocalServer::Start(script.program(), {});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(Appears(script.file(".done")));
}

TEST(LocalServerTest, SaysWhatAServerThatEndsSaidLast) {
  const Script script("echo 'now info starting' >&2\necho 'now error no device' >&2\nexit 1\n");
  const auto server = LocalServer::Start(script.program(), {});
  EXPECT_EQ(server.status(), absl::UnavailableError("no device"));
  const Script silent("exit 1\n");
  EXPECT_EQ(LocalServer::Start(silent.program(), {}).status(),
            absl::UnavailableError("the server ended and said nothing"));
}

// As one whose start hangs, and takes no SIGTERM yet.
TEST(LocalServerTest, GivesUpOnAServerThatHangs) {
  const Script script("trap '' TERM\necho 'now info waiting for the card' >&2\nexec sleep 600\n");
  const auto server = LocalServer::Start(script.program(), {}, absl::Seconds(3));
  EXPECT_EQ(server.status().code(), absl::StatusCode::kDeadlineExceeded) << server.status();
  EXPECT_THAT(std::string(server.status().message()),
              AllOf(HasSubstr("does not serve within 3s"), HasSubstr("waiting for the card")));
}

TEST(LocalServerTest, NamesAFolderForTemporaryFilesThatIsNotThere) {
  const Script script(kServing);
  const Variable folder("TMPDIR", "/nowhere/at/all");
  const auto server = LocalServer::Start(script.program(), {});
  EXPECT_EQ(server.status().code(), absl::StatusCode::kNotFound) << server.status();
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("/nowhere/at/all"));
}

}  // namespace
}  // namespace nsa::metadata::client
