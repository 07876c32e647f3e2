// timeout: 120
/// doctor: every illness is shown to the judgements, and the command looks at this machine alone
/// and with two ranks.
#include "launcher/doctor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using testing_support::longspan;
using testing_support::run_process;

/// The worst finding on a subject.
Finding worst(const Findings& findings, const std::string& subject) {
  Finding result;
  result.found = "nothing on " + subject;
  bool any = false;
  for (const Finding& f : findings)
    if (f.subject == subject && (!any || f.health > result.health)) result = f, any = true;
  return result;
}

NodeFacts good_node() {
  NodeFacts facts;
  facts.machine_cores = 64, facts.usable_cores = 64, facts.sharing_ranks = 8;
  facts.memory_bytes = 256LL << 30, facts.available_bytes = 200LL << 30;
  facts.shm_free_bytes = 100LL << 30, facts.open_files = 65536;
  return facts;
}

TEST(Doctor, AGoodNodeHasNothingToRemedy) {
  for (const Finding& f : judge_node(good_node(), 8)) {
    EXPECT_TRUE(f.health == Health::kGood || f.health == Health::kInfo) << f.subject;
    EXPECT_EQ(f.remedy, "");
  }
}

TEST(Doctor, EveryIllnessOfANodeIsFoundAndHasARemedy) {
  struct Case {
    const char* subject;
    Health health;
    const char* says;
    void (*make_ill)(NodeFacts&);
  };
  const Case cases[] = {
      {"cores", Health::kBad, "65 ranks share 64", [](NodeFacts& f) { f.sharing_ranks = 65; }},
      {"clock governor", Health::kWarning, "powersave",
       [](NodeFacts& f) { f.governor = "powersave"; }},
      {"memory", Health::kWarning, "21.5 GB available",
       [](NodeFacts& f) { f.available_bytes = 20LL << 30; }},
      {"memory", Health::kGood, "limited to 34.4 GB",
       [](NodeFacts& f) { f.group_limit_bytes = 32LL << 30; }},
      {"/dev/shm", Health::kBad, "67.1 MB free", [](NodeFacts& f) { f.shm_free_bytes = 64 << 20; }},
      {"limit: file size", Health::kWarning, "1.0 GB",
       [](NodeFacts& f) { f.file_size_limit = 1000000000; }},
      {"limit: address space", Health::kWarning, "1.0 GB",
       [](NodeFacts& f) { f.address_limit = 1000000000; }},
      {"limit: locked memory", Health::kBad, "65.5 kB",
       [](NodeFacts& f) { f.infiniband = true, f.locked_limit = 65536; }},
      {"limit: open files", Health::kWarning, "256", [](NodeFacts& f) { f.open_files = 256; }},
      {"limit: processes", Health::kWarning, "100", [](NodeFacts& f) { f.processes = 100; }},
  };
  for (const Case& c : cases) {
    NodeFacts facts = good_node();
    c.make_ill(facts);
    const Finding f = worst(judge_node(facts, 8), c.subject);
    EXPECT_EQ(f.health, c.health) << c.subject;
    EXPECT_NE(f.found.find(c.says), std::string::npos) << f.found;
    EXPECT_EQ(f.remedy.empty(), c.health == Health::kGood) << c.subject;
  }
  NodeFacts ethernet = good_node();
  ethernet.locked_limit = 65536;
  EXPECT_EQ(worst(judge_node(ethernet, 8), "limit: locked memory").found,
            "nothing on limit: locked memory");
}

TEST(Doctor, ASlowRankIsNamedWithItsNode) {
  const std::vector<std::string> nodes = {"n1", "n1", "n2", "n2", "n3"};
  EXPECT_EQ(judge_speeds({100e9, 99e9, 101e9, 98e9, 81e9}, nodes).size(), 1u);
  const auto slow = judge_speeds({100e9, 99e9, 101e9, 98e9, 70e9}, nodes);
  ASSERT_EQ(slow.size(), 2u);
  EXPECT_EQ(slow[1].health, Health::kWarning);
  EXPECT_EQ(slow[1].found, "rank 4 on n3: 70.0 GFLOP/s, 0.71 x the median");
  EXPECT_EQ(judge_speeds({100e9, 99e9, 101e9, 98e9, 40e9}, nodes)[1].health, Health::kBad);
}

TEST(Doctor, LinksAreComparedWithThoseOfTheirKind) {
  const std::vector<std::string> nodes = {"n1", "n1", "n2", "n3"};
  const auto findings = judge_links(
      {{0, 1, 1e-6, 10e9}, {1, 2, 5e-6, 1e9}, {2, 3, 5e-6, 0.4e9}, {3, 0, 5e-6, 1e9}}, nodes);
  ASSERT_EQ(findings.size(), 3u);
  EXPECT_EQ(findings[0].subject, "inside a node");
  EXPECT_EQ(findings[0].health, Health::kGood);
  EXPECT_EQ(findings[1].subject, "between nodes");
  EXPECT_EQ(findings[2].health, Health::kBad);
  EXPECT_EQ(findings[2].found, "rank 2 on n2 to rank 3 on n3: 400.0 MB/s, 0.40 x the median");
  EXPECT_TRUE(judge_links({}, {"n1"}).empty());
}

TEST(Doctor, ClocksFarApartAreAWarning) {
  EXPECT_EQ(judge_clocks({0, 0.5, -0.9}, {"a", "b", "c"})[0].health, Health::kGood);
  const Finding f = judge_clocks({0, 0.5, -3}, {"a", "b", "c"})[0];
  EXPECT_EQ(f.health, Health::kWarning);
  EXPECT_EQ(f.found, "c's clock is 3.0 s behind a's");
}

io::FileSystemFacts good_file_system() {
  io::FileSystemFacts facts;
  facts.type = "lustre", facts.shared = true, facts.direct = true;
  facts.total_bytes = 100'000'000'000'000, facts.free_bytes = 50'000'000'000'000;
  facts.sync_seconds = 1e-3, facts.write_bytes_per_second = 1e9;
  return facts;
}

TEST(Doctor, EveryIllnessOfAFileSystemIsFoundAndHasARemedy) {
  for (const Finding& f : judge_file_system("d", good_file_system(), 4))
    EXPECT_LT(f.health, Health::kWarning) << f.subject;
  struct Case {
    const char* subject;
    Health health;
    void (*make_ill)(io::FileSystemFacts&);
  };
  const Case cases[] = {
      {"file system", Health::kWarning, [](auto& f) { f.type = "tmpfs"; }},
      {"space", Health::kBad, [](auto& f) { f.free_bytes = 100 << 20; }},
      {"space", Health::kWarning, [](auto& f) { f.free_bytes = 1'000'000'000'000; }},
      {"files", Health::kBad, [](auto& f) { f.free_files = 10; }},
      {"locking", Health::kBad, [](auto& f) { f.locking = "flock: Function not implemented"; }},
      {"rename", Health::kBad, [](auto& f) { f.renaming = "rename: Operation not permitted"; }},
      {"symbolic links", Health::kWarning, [](auto& f) { f.linking = "symlink: no"; }},
      {"durability", Health::kWarning, [](auto& f) { f.sync_seconds = 2; }},
      {"writing", Health::kWarning, [](auto& f) { f.write_bytes_per_second = 1e6; }},
  };
  for (const Case& c : cases) {
    auto facts = good_file_system();
    c.make_ill(facts);
    const Finding f = worst(judge_file_system("d", facts, 4), c.subject);
    EXPECT_EQ(f.health, c.health) << c.subject << ": " << f.found;
    EXPECT_NE(f.remedy, "") << c.subject;
  }
}

TEST(Doctor, WhatIsAlikeEverywhereIsOneRow) {
  const Finding good = {"node", "memory", Health::kGood, "10 GB"};
  const Finding other = {"node", "memory", Health::kGood, "11 GB"};
  const Finding bad = {"node", "memory", Health::kWarning, "1 GB", "make room"};
  const auto merged =
      merge_findings({{"n1", {good}}, {"n2", {other}}, {"n3", {bad}}, {"n4", {bad}}});
  ASSERT_EQ(merged.size(), 2u);
  EXPECT_EQ(merged[0].nodes, (std::vector<std::string>{"n1", "n2"}));
  EXPECT_EQ(merged[1].nodes, (std::vector<std::string>{"n3", "n4"}));
  const auto alike = merge_findings({{"n1", {good}}, {"n2", {other}}});
  ASSERT_EQ(alike.size(), 1u);
  EXPECT_TRUE(alike[0].nodes.empty());
  EXPECT_EQ(alike[0].finding.found, "10 GB (on n1; the others are alike)");

  const std::string text = doctor_text(merged, false);
  EXPECT_NE(text.find("!   memory  n3, n4: 1 GB\n"), std::string::npos) << text;
  EXPECT_NE(text.find("-> make room"), std::string::npos) << text;
  EXPECT_NE(text.find("0 bad, 1 warning"), std::string::npos) << text;
  EXPECT_EQ(text.find('\033'), std::string::npos);
  EXPECT_NE(doctor_text(merged, true).find('\033'), std::string::npos);
  const auto back = findings_from_json(findings_to_json({bad}));
  ASSERT_EQ(back.size(), 1u);
  EXPECT_EQ(back[0].remedy, bad.remedy);
  EXPECT_EQ(back[0].health, bad.health);
}

TEST(Doctor, TheFileSystemHereIsProbedWithoutATrace) {
  const testing_support::TemporaryDirectory folder;
  const std::string path = folder.file("runs");
  std::filesystem::create_directory(path);
  const auto facts = io::probe_file_system(path, 1 << 20);
  EXPECT_EQ(facts.locking, "");
  EXPECT_EQ(facts.renaming, "");
  EXPECT_GT(facts.free_bytes, 0);
  EXPECT_GT(facts.write_bytes_per_second, 0);
  EXPECT_TRUE(std::filesystem::is_empty(path));
  EXPECT_EQ(io::existing_parent(path + "/not/yet"), path);
}

TEST(Doctor, LooksAtThisMachineAloneAndWithTwoRanks) {
  const testing_support::TemporaryDirectory folder;
  const auto alone = longspan({"doctor", "--directory", folder.file("runs/x"), "--json"});
  ASSERT_NE(alone.status, 2) << alone.err;
  const auto report = nlohmann::json::parse(alone.out);
  EXPECT_EQ(report["ranks"], 1);
  EXPECT_EQ(report["nodes"].size(), 1u);
  const auto has = [](const nlohmann::json& r, const std::string& subject) {
    return std::any_of(r["findings"].begin(), r["findings"].end(),
                       [&](const auto& f) { return f["subject"] == subject; });
  };
  for (const char* subject : {"program", "instruction set", "library", "cores", "memory", "driver",
                              "locking", "rename", "matrix product"})
    EXPECT_TRUE(has(report, subject)) << subject;
  EXPECT_FALSE(has(report, "inside a node"));
  bool bad = false;
  for (const auto& f : report["findings"]) bad |= f["health"] == "bad";
  EXPECT_EQ(alone.status, bad ? 1 : 0);

  const auto two =
      run_process({"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2",
                   testing_support::longspan_path(), "doctor", "--directory", folder.file("runs")});
  EXPECT_NE(two.out.find("2 ranks on 1 node"), std::string::npos) << two.out << two.err;
  EXPECT_NE(two.out.find("inside a node"), std::string::npos) << two.out;
  EXPECT_NE(two.out.find("clocks"), std::string::npos) << two.out;
  EXPECT_EQ(testing_support::count_lines(two.out) > 20, true);
  EXPECT_EQ(longspan({"doctor", "here"}).status, 2);
}

TEST(Doctor, AFolderThatCannotBeWrittenIsBad) {
  const auto r = longspan({"doctor", "--directory", "/proc/runs"});
  EXPECT_EQ(r.status, 1) << r.out;
  EXPECT_NE(r.out.find("choose a run.directory that this user may write to"), std::string::npos)
      << r.out;
}

}  // namespace
}  // namespace longspan::launcher
