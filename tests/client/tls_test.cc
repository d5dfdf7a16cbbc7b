#include "client/tls.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace nsa::metadata::client {
namespace {

std::string FileWith(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

std::string Wrong(const TlsFiles& files) { return std::string(TlsCredentials(files).status().message()); }

TEST(TlsCredentialsTest, NamesTheFileThatIsNotWhatItShouldBe) {
  const std::string nothing = FileWith("nothing.pem", "nothing");
  const std::string certificate = FileWith("certificate.pem", "-----BEGIN CERTIFICATE-----\n");
  EXPECT_EQ(Wrong({.ca = "/nowhere"}), "the roots /nowhere can't be read: No such file or directory");
  EXPECT_EQ(Wrong({.ca = nothing}), "the roots " + nothing + " has to hold a CERTIFICATE in PEM form");
  EXPECT_EQ(Wrong({.certificate = nothing, .key = nothing}),
            "the certificate " + nothing + " has to hold a CERTIFICATE in PEM form");
  EXPECT_EQ(Wrong({.certificate = certificate, .key = certificate}),
            "the key " + certificate + " has to hold a PRIVATE KEY in PEM form");
}

TEST(TlsCredentialsTest, ACertificateAndItsKeyNeedEachOther) {
  EXPECT_EQ(Wrong({.certificate = "a"}), "a certificate and its key need each other");
  EXPECT_EQ(Wrong({.key = "a"}), "a certificate and its key need each other");
}

TEST(TlsCredentialsTest, WithoutFilesTheSystemsRootsAreTaken) { EXPECT_TRUE(TlsCredentials({}).ok()); }

}  // namespace
}  // namespace nsa::metadata::client
