/// A real Slurm cluster on this machine for the tests of one program: 4 nodes n1..n4, each with an
/// own network address, host name and process table (tests/slurm/cluster). A test program that
/// includes this has `// lock: slurm-cluster` and `// label: slow` at its top.
///   class Requeue : public testing_support::ClusterTest {};
///   TEST_F(Requeue, ...) { const std::string job = submit(script); ASSERT_TRUE(reached(job,
///   {"COMPLETED"})); }
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::testing_support {

/// Starts the cluster with the program's first test that wants it and takes it down when the
/// program ends, however it ends: a guardian outside of the program's process tree sees to that.
/// Where there can be no cluster every test is skipped with the reason. Between tests all jobs are
/// cancelled and all nodes made idle.
class ClusterTest : public testing::Test {
 protected:
  static constexpr auto kSoon = std::chrono::seconds(60);

  void SetUp() override;
  void TearDown() override;

  /// Runs a command on the head (sbatch, scontrol, squeue ...) or on a node, in the test's folder.
  ProcessResult head(std::vector<std::string> command) const;
  ProcessResult on(const std::string& node, std::vector<std::string> command) const;
  /// `what`: kill-node (power loss), cut-node (its network is gone, its processes go on),
  /// restore-node.
  void node(const std::string& what, const std::string& name) const;

  /// Writes the script into the test's folder and submits it; `options` come before it. Returns the
  /// job id, empty (and a failure) if sbatch refused.
  std::string submit(const std::string& script, std::vector<std::string> options = {}) const;
  /// What `scontrol show job` says: JobState, Restarts, NodeList, ExitCode, Reason, ...
  std::map<std::string, std::string> job(const std::string& id) const;
  /// Whether the job's state is one of `states` before `within` is over. If not, the test is told
  /// what the job's state and its log are.
  testing::AssertionResult reached(const std::string& id, const std::vector<std::string>& states,
                                   std::chrono::seconds within = kSoon) const;
  /// Whether `text` stands in the file (not yet there: not yet) before `within` is over.
  testing::AssertionResult says(const std::string& file, const std::string& text,
                                std::chrono::seconds within = kSoon) const;

  std::string file(const std::string& name) const { return folder_.file(name); }
  static std::string read(const std::string& path);

  TemporaryDirectory folder_;
};

}  // namespace longspan::testing_support
