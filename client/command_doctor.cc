#include "client/command_doctor.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/client.h"
#include "client/doctor.h"
#include "client/failure.h"
#include "client/flags.h"
#include "client/json.h"
#include "client/local_server.h"

namespace nsa::metadata::client {
namespace {

struct Flags {
  CommonFlags common;
  std::string server;
  int64_t requests = 500;
};

struct Subject {
  const char* name;
  std::vector<std::string> flags;
};

// The plain code first: the others are measured against it.
const std::vector<Subject>& Subjects() {
  static const auto* subjects = new std::vector<Subject>{
      {"reference", {"--backend=reference"}},
      {"cpu", {"--backend=cpu"}},
      {"cuda, linear kernel", {"--backend=cuda", "--kernel=linear"}},
      {"cuda, binary kernel", {"--backend=cuda", "--kernel=binary"}},
      {"cuda, rows kernel", {"--backend=cuda", "--kernel=rows"}},
      {"cuda, tile kernel", {"--backend=cuda", "--kernel=tile"}},
      {"cuda, by threshold", {"--backend=cuda", "--kernel=threshold"}},
      {"cuda, adaptive", {"--backend=cuda", "--kernel=adaptive"}},
  };
  return *subjects;
}

absl::Status Examine(Client& client, const Flags& flags, Finding* finding) {
  const absl::StatusOr<v1::GetServerInfoResponse> info = client.ServerInfo();
  if (!info.ok()) return info.status();
  finding->device = info->device();
  if (absl::Status status = CheckExpansions(client, flags.requests, finding); !status.ok()) return status;
  return TimeSteps(client, finding);
}

JsonObject ToJson(const Finding& finding) {
  std::vector<std::string> times;
  for (const StepTime& time : finding.times) {
    times.push_back(JsonObject().Add("tokens", time.tokens).Add("microseconds", time.microseconds).str());
  }
  std::string list;
  for (const std::string& time : times) absl::StrAppend(&list, list.empty() ? "" : ",", time);
  return JsonObject()
      .Add("name", finding.name)
      .Add("device", finding.device)
      .Add("checked", finding.checked)
      .Add("wrong", finding.wrong)
      .Add("first_difference", finding.first_difference)
      .AddJson("times", absl::StrCat("[", list, "]"));
}

// `plain`: the reference, where there is one to compare with.
void PrintFinding(const Finding& finding, const Finding* plain) {
  std::printf("%-22s %s\n", finding.name.c_str(), finding.device.c_str());
  std::printf("  %s: %lld expansions, %lld wrong\n", finding.wrong == 0 ? "ok" : "WRONG",
              static_cast<long long>(finding.checked), static_cast<long long>(finding.wrong));
  if (finding.wrong > 0) std::printf("  first: %s\n", finding.first_difference.c_str());
  const StepTime& large = finding.times.back();
  std::printf("  64 sequences: %.1f us for %lld tokens, %.1f us for %lld", finding.times.front().microseconds,
              static_cast<long long>(finding.times.front().tokens), large.microseconds,
              static_cast<long long>(large.tokens));
  if (plain != nullptr) {
    std::printf(" (%.1f times the reference's speed)", plain->times.back().microseconds / large.microseconds);
  }
  std::puts("");
}

void PrintCrossover(const std::vector<Finding>& findings) {
  const Finding& cpu = findings[1];
  const Finding& cuda = findings.back();
  const std::optional<int64_t> from = FasterFrom(cuda, cpu);
  if (from) {
    std::printf("the card beats the CPU from %lld tokens a batch\n", static_cast<long long>(*from));
  } else {
    std::printf("the card does not beat the CPU up to %lld tokens a batch\n",
                static_cast<long long>(cpu.times.back().tokens));
  }
}

ExitCode Report(const std::vector<Finding>& findings, const std::string& no_cuda, bool json) {
  bool wrong = false;
  std::string list;
  for (const Finding& finding : findings) {
    wrong = wrong || finding.wrong > 0;
    if (json) {
      absl::StrAppend(&list, list.empty() ? "" : ",", ToJson(finding).str());
    } else {
      PrintFinding(finding, &findings.front());
    }
  }
  if (json) {
    std::puts(JsonObject().AddJson("findings", absl::StrCat("[", list, "]")).Add("no_cuda", no_cuda).str().c_str());
  } else if (!no_cuda.empty()) {
    std::printf("no CUDA: %s\n", no_cuda.c_str());
  } else {
    PrintCrossover(findings);
  }
  return wrong ? kWrongBytes : kOk;
}

ExitCode Fail(const absl::Status& status, const Flags& flags) {
  PrintFailure(status, flags.common.json);
  return ExitCodeOf(status);
}

// Starts this installation's server once for each backend and kernel.
ExitCode ExamineInstallation(const Flags& flags) {
  const std::string program = flags.server.empty() ? FindServerProgram() : flags.server;
  if (program.empty()) {
    return PrintUsageError(absl::NotFoundError("no nsa-metadata-server beside this program; --server names one"));
  }
  std::vector<Finding> findings;
  std::string no_cuda;
  for (const Subject& subject : Subjects()) {
    const bool needs_cuda = subject.flags.front() == "--backend=cuda";
    if (needs_cuda && !no_cuda.empty()) continue;
    const auto server = LocalServer::Start(program, subject.flags);
    if (!server.ok()) {
      if (absl::IsNotFound(server.status())) return PrintUsageError(server.status());
      // One that ends says what it lacks; one that hangs may not pass for a machine without CUDA.
      if (!needs_cuda || !absl::IsUnavailable(server.status())) return Fail(server.status(), flags);
      no_cuda = std::string(server.status().message());
      continue;
    }
    Finding& finding = findings.emplace_back();
    finding.name = subject.name;
    // Its own socket has no TLS, whatever the flags and the environment say of others.
    const auto client = Client::Connect((*server)->target(), {.timeout = flags.common.timeout});
    if (!client.ok()) return PrintUsageError(client.status());
    if (absl::Status status = Examine(**client, flags, &finding); !status.ok()) return Fail(status, flags);
  }
  return Report(findings, no_cuda, flags.common.json);
}

// Looks at a server that runs already, from outside.
ExitCode ExamineServer(const Flags& flags) {
  Finding finding;
  finding.name = flags.common.target;
  const absl::StatusOr<std::unique_ptr<Client>> client = Connect(flags.common, {});
  if (!client.ok()) return PrintUsageError(client.status());
  if (absl::Status status = Examine(**client, flags, &finding); !status.ok()) return Fail(status, flags);
  if (flags.common.json) {
    std::puts(ToJson(finding).str().c_str());
  } else {
    PrintFinding(finding, nullptr);
  }
  return finding.wrong > 0 ? kWrongBytes : kOk;
}

}  // namespace

void AddDoctorCommand(CLI::App& program, int& exit_code) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& command = *program.add_subcommand(
      "doctor",
      "Prove this installation: every backend and kernel against the reference; with --target, a running server");
  AddCommonFlags(command, flags->common);
  command.add_option("--server", flags->server, "The server program; empty: the one beside this program");
  command.add_option("--requests", flags->requests, "Expansions to compare for each kernel")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}));
  command.callback([flags, &command, &exit_code] {
    exit_code = command.count("--target") > 0 ? ExamineServer(*flags) : ExamineInstallation(*flags);
  });
}

}  // namespace nsa::metadata::client
