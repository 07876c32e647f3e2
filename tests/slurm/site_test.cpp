/// What submit says of requests that Slurm would never serve: judged, and asked of stand-ins for
/// scontrol, sinfo and sacctmgr. (On a real cluster: submit_cluster_test.cpp.)
#include "slurm/site.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using slurm::SlurmConfig;
using testing_support::ProcessResult;

/// As Slurm 22.05 prints them, shortened.
constexpr const char* kPartitions =
    "PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A "
    "MaxNodes=6 MaxTime=1-00:00:00 MinNodes=0 State=UP TotalCPUs=96 TotalNodes=8\n"
    "PartitionName=long AllowGroups=ALL AllowAccounts=climate,bio DenyQos=quick Default=NO "
    "QoS=N/A MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalCPUs=32 TotalNodes=2\n"
    "PartitionName=old AllowAccounts=ALL Default=NO MaxTime=UNLIMITED State=DOWN TotalNodes=2\n";
constexpr const char* kNodes = "main|8|6\nmain|24|2\nlong|16|2\n";

slurm::Site site() {
  return {slurm::parse_partitions(kPartitions), slurm::parse_node_kinds(kNodes), {}, {}};
}

struct Case {
  std::function<void(SlurmConfig&)> change;
  int cpus_per_rank;
  bool certain;
  std::string says;  ///< empty = nothing is wrong
};

TEST(Site, WhatNoPartitionCanServeIsNamedWithTheWayOut) {
  for (const Case& c : std::vector<Case>{
           {[](auto&) {}, 0, false, ""},
           {[](auto& s) { s.partition = "nosuch"; }, 0, true,
            "slurm.partition=nosuch: there is no such partition: set slurm.partition to main, "
            "long,"},
           {[](auto& s) { s.nodes = 8, s.partition = "main"; }, 0, false,
            "slurm.nodes=8 but partition main allows 6 to a job"},
           {[](auto& s) { s.nodes = 9; }, 0, true, "slurm.nodes=9 but partition main has 8: lower"},
           {[](auto& s) { s.nodes = 6; }, 0, false, ""},
           {[](auto& s) { s.nodes = 3, s.partition = "long"; }, 0, true, "partition long has 2"},
           {[](auto& s) { s.time = "1-00:00:00"; }, 0, false, ""},
           {[](auto& s) { s.time = "1441"; }, 0, false,
            "slurm.time=1441 is above the 1-00:00:00 of partition main"},
           {[](auto& s) { s.time = "30-0", s.partition = "long"; }, 0, false, ""},
           {[](auto& s) { s.time = "30-0", s.partition = "main,long"; }, 0, false, ""},
           {[](auto& s) { s.ranks_per_node = 24; }, 0, false, ""},
           {[](auto& s) { s.ranks_per_node = 24; }, 2, true,
            "slurm.ranks-per-node=24 * 2 processors a rank = 48, but no node of partition main has "
            "more than 24"},
           {[](auto& s) { s.nodes = 3, s.ranks_per_node = 4; }, 4, true,
            "= 16, but only 2 of the nodes of partition main have as many, and slurm.nodes=3"},
           {[](auto& s) { s.partition = "old"; }, 0, false, "partition old is not up"},
           {[](auto& s) { s.partition = "long", s.account = "climate"; }, 0, false, ""},
           {[](auto& s) { s.partition = "long", s.account = "physics"; }, 0, false,
            "slurm.account=physics: partition long takes climate, bio"},
           {[](auto& s) { s.partition = "long", s.qos = "quick"; }, 0, false,
            "slurm.qos=quick: partition long does not take it"},
       }) {
    SlurmConfig request;
    request.nodes = 2, request.ranks_per_node = 4;
    c.change(request);
    const auto problems = slurm::request_problems(request, c.cpus_per_rank, site());
    ASSERT_EQ(problems.size(), c.says.empty() ? 0u : 1u)
        << c.says << " / " << (problems.empty() ? "" : problems.back().text);
    if (problems.empty()) continue;
    EXPECT_NE(problems[0].text.find(c.says), std::string::npos) << problems[0].text;
    EXPECT_EQ(problems[0].certain, c.certain) << problems[0].text;
    EXPECT_EQ(problems[0].text.find('\n'), std::string::npos);
  }
}

TEST(Site, AccountsAndQosAreComparedWithTheUsersOwnWhereTheyAreKnown) {
  slurm::Site known = site();
  SlurmConfig request;
  request.nodes = request.ranks_per_node = 1, request.account = "bio", request.qos = "quick";
  EXPECT_TRUE(slurm::request_problems(request, 0, known).empty());
  known.accounts = {"climate", "climate"}, known.qos = {"normal", "quick"};
  const auto problems = slurm::request_problems(request, 0, known);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].text, "slurm.account=bio is not one of yours: climate");
}

class SubmitAsks : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(folder_.file("bin"));
    command("scontrol", "case $* in *partition*) cat <<'end'\n" + std::string(kPartitions) +
                            "end\n;; *) exit 1 ;; esac\n");
    command("sinfo", "cat <<'end'\n" + std::string(kNodes) + "end\n");
    command("sacctmgr", "echo 'climate|normal,quick'\n");
    command("sbatch", "cat >/dev/null; echo 7\n");
  }
  void command(const std::string& name, const std::string& body) {
    const std::string path = folder_.file("bin/" + name);
    std::ofstream(path) << "#!/bin/bash\necho \"" << name << " $*\" >>" << folder_.file("asked")
                        << "\n"
                        << body;
    fs::permissions(path, fs::perms::owner_all);
  }
  ProcessResult submit(std::vector<std::string> settings, const std::string& variable = "A=1") {
    fs::remove_all(folder_.file("run"));
    std::vector<std::string> words = {"env",
                                      "-C",
                                      folder_.path(),
                                      "PATH=" + folder_.file("bin") + ":/usr/bin:/bin",
                                      variable,
                                      testing_support::longspan_path(),
                                      "submit",
                                      "--run.directory",
                                      "run",
                                      "--slurm.ranks-per-node",
                                      "2"};
    words.insert(words.end(), settings.begin(), settings.end());
    return testing_support::run_process(words);
  }
  bool asked(const std::string& name) const {
    std::ifstream file(folder_.file("asked"));
    for (std::string line; std::getline(file, line);)
      if (line.starts_with(name + " ")) return true;
    return false;
  }
  testing_support::TemporaryDirectory folder_;
};

TEST_F(SubmitAsks, RefusesWhatIsCertainInOneLineAndSubmitsNothing) {
  const auto r = submit({"--slurm.nodes", "9"});
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("slurm.nodes=9 but partition main has 8"), std::string::npos) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
  EXPECT_FALSE(asked("sbatch"));
  EXPECT_FALSE(fs::exists(folder_.file("run")));
}

TEST_F(SubmitAsks, WarnsOfWhatWouldWaitAndSubmitsIt) {
  const auto r = submit({"--slurm.nodes", "1", "--slurm.time", "2-0", "--slurm.account", "bio"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("submitted job 7"), std::string::npos) << r.out;
  const std::string said = r.out + r.err;
  EXPECT_NE(said.find("warning: slurm.time=2-0 is above the 1-00:00:00 of partition main"),
            std::string::npos)
      << said;
  EXPECT_NE(said.find("slurm.account=bio is not one of yours: climate"), std::string::npos) << said;
}

TEST_F(SubmitAsks, SaysNothingWhereSlurmDoesNot) {
  const std::string half = "cat <<'end'\n" + std::string(kPartitions) + "end\nexit 1\n";
  for (const std::string& body : {std::string("exit 1\n"), half, std::string("echo nonsense\n"),
                                  std::string("exec sleep 30\n")}) {
    command("scontrol", body);
    const auto begin = std::chrono::steady_clock::now();
    const auto r = submit({"--slurm.nodes", "9"});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.err, "");
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(25)) << body;
  }
}

TEST_F(SubmitAsks, StrongerWordsThanTheSettingsAreLeftToSbatch) {
  const auto with_extra = [&](const std::string& extra) {
    std::ofstream(folder_.file("extra.ini")) << "[slurm]\nextra = " << extra << "\n";
    return submit({"--slurm.nodes", "9", "--config", "extra.ini"}).status;
  };
  for (const char* extra : {"-p long", "-plong", "--partition=long", "--clusters=b --exclusive"})
    EXPECT_EQ(with_extra(extra), 0) << extra;
  for (const char* extra : {"--time-min=5", "--exclusive", "--profile=task"})
    EXPECT_EQ(with_extra(extra), 1) << extra;
  EXPECT_EQ(submit({"--slurm.nodes", "9"}, "SBATCH_PARTITION=long").status, 0);
}

TEST_F(SubmitAsks, ADryRunAsksNothing) {
  const auto r = submit({"--slurm.nodes", "9", "--dry-run"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_FALSE(fs::exists(folder_.file("asked")));
}

}  // namespace
}  // namespace longspan
