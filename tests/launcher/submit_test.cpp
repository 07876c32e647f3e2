/// `longspan submit` without Slurm: nodes and ranks, measured times, and what a dry run leaves
/// behind.
#include "launcher/submit.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using launcher::RunConfig;

struct NodesCase {
  int nodes, ranks_per_node, data, context;
  int want_nodes, want_ranks;  ///< 0: refused
};

TEST(Submit, NodesAndRanksFollowFromTheMesh) {
  for (const NodesCase& c : std::vector<NodesCase>{{0, 0, 2, 2, 1, 4},
                                                   {2, 0, 2, 2, 2, 2},
                                                   {0, 2, 2, 2, 2, 2},
                                                   {2, 2, 2, 2, 2, 2},
                                                   {2, 2, 0, 2, 2, 2},
                                                   {0, 4, 0, 2, 1, 4},
                                                   {3, 0, 2, 2, 0, 0},
                                                   {0, 3, 2, 2, 0, 0},
                                                   {2, 3, 2, 2, 0, 0},
                                                   {3, 1, 0, 2, 0, 0},
                                                   {2, 0, 0, 2, 0, 0},
                                                   {0, 0, 0, 1, 0, 0}}) {
    RunConfig config;
    config.slurm.nodes = c.nodes, config.slurm.ranks_per_node = c.ranks_per_node;
    config.mesh.data = c.data, config.mesh.context = c.context;
    try {
      const auto slurm = launcher::resolve_nodes(config);
      EXPECT_EQ(slurm.nodes, c.want_nodes);
      EXPECT_EQ(slurm.ranks_per_node, c.want_ranks);
    } catch (const Error& e) {
      EXPECT_EQ(c.want_nodes, 0) << e.what();
      EXPECT_EQ(e.status(), ExitStatus::kUsage);
      EXPECT_NE(std::string(e.what()).find("slurm."), std::string::npos) << e.what();
    }
  }
}

TEST(Submit, LeadComesFromWhatTheRunHasMeasured) {
  const testing_support::TemporaryDirectory folder;
  EXPECT_EQ(launcher::measured_times(folder.path()).step_seconds, 0);
  std::ofstream(folder.file("metrics.jsonl")) << R"({"step": 1, "step_seconds": 2.5})"
                                                 "\n"
                                                 R"({"step": 2, "step_seconds": 1.5})"
                                                 "\n"
                                              << R"({"step": 3, "step_sec)";
  std::ofstream(folder.file("log.txt"))
      << "saved runs/in 9 s/step-0000000001 in 0.25 s\n"
         "saved runs/step-0000000002 in 3.75 s, 8.00 s of it in the way\n5 steps in 99 s; done\n";
  const auto times = launcher::measured_times(folder.path());
  EXPECT_EQ(times.step_seconds, 2.5);
  EXPECT_EQ(times.save_seconds, 3.75);
}

TEST(Submit, DryRunTouchesNothingAndIsTheSameTwice) {
  const testing_support::TemporaryDirectory folder;
  const std::vector<std::string> command = {"env",
                                            "-C",
                                            folder.path(),
                                            "PATH=/nowhere",
                                            testing_support::longspan_path(),
                                            "submit",
                                            "--run.name",
                                            "x; rm -rf ~",
                                            "--slurm.nodes",
                                            "2",
                                            "--slurm.ranks-per-node",
                                            "2",
                                            "--dry-run"};
  const auto first = testing_support::run_process(command);
  const auto second = testing_support::run_process(command);
  EXPECT_EQ(first.status, 0) << first.err;
  EXPECT_EQ(first.out, second.out);
  EXPECT_EQ(first.out.rfind("#!/bin/bash\n", 0), 0u) << first.out;
  EXPECT_NE(first.out.find("  --run.name 'x; rm -rf ~'\n"), std::string::npos) << first.out;
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Submit, WithoutSbatchThereIsOneLine) {
  const testing_support::TemporaryDirectory folder;
  const auto r = testing_support::run_process(
      {"env", "-C", folder.path(), "PATH=/nowhere", testing_support::longspan_path(), "submit",
       "--slurm.nodes", "1", "--slurm.ranks-per-node", "1"});
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("there is no sbatch here"), std::string::npos) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
}

TEST(Submit, WhatNoScriptCanHoldIsRefused) {
  const auto r =
      testing_support::longspan({"submit", "--slurm.nodes", "1", "--slurm.ranks-per-node", "1",
                                 "--dry-run", "--slurm.time", "soon", "--slurm.partition", "a\nb",
                                 "--slurm.environment", "A=1 2B=3", "--slurm.extra", "exclusive"});
  EXPECT_EQ(r.status, 2);
  for (const char* name :
       {"slurm.time=soon", "slurm.partition=", "'2B=3' is not NAME=VALUE", "slurm.extra=exclusive"})
    EXPECT_NE(r.err.find(name), std::string::npos) << r.err;
}

}  // namespace
}  // namespace longspan
