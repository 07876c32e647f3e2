/// What is concluded from the ranks' accounts, without any rank.
#include "parallel/watchdog.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace longspan::parallel {
namespace {

using Ranks = std::vector<int>;

WatchedGroup group_of(const std::string& name, const Ranks& members, std::int64_t begun) {
  return {name, 0, members, false, begun, std::nullopt};
}

/// Waits in call `sequence` of the group, for `seconds`.
WatchedGroup waiting(const std::string& name, const Ranks& members, std::int64_t sequence,
                     double seconds, const std::string& operation = "all_reduce",
                     std::int64_t bytes = 64) {
  WatchedGroup group = group_of(name, members, sequence);
  group.open = OpenOperation{operation, "float32", sequence, bytes, 5, seconds};
  return group;
}

RankState rank_of(int rank, std::vector<WatchedGroup> groups, int waits_in) {
  RankState s;
  s.rank = rank;
  s.node = "n" + std::to_string(rank);
  s.process = 100 + rank;
  s.answered = 1;
  s.step = 5;
  s.phase = "forward and backward";
  s.phase_seconds = 12;
  s.groups = std::move(groups);
  s.waits_in = waits_in;
  if (waits_in >= 0) s.waits_for = s.groups[static_cast<std::size_t>(waits_in)].begun;
  return s;
}

TEST(HangTimeout, IsReadAndWorkedOut) {
  EXPECT_TRUE(parse_hang_timeout("auto")->enabled);
  EXPECT_EQ(parse_hang_timeout("auto")->seconds, 0);
  EXPECT_EQ(parse_hang_timeout("0")->seconds, 0);
  EXPECT_FALSE(parse_hang_timeout("off")->enabled);
  EXPECT_EQ(parse_hang_timeout("2.5")->seconds, 2.5);
  for (const char* bad : {"", "soon", "-1", "0.5", "10s", "nan", "inf", " 5"})
    EXPECT_FALSE(parse_hang_timeout(bad).has_value()) << bad;
  EXPECT_EQ(hang_limit({true, 3}, {100, 100}), 3);
  EXPECT_EQ(hang_limit({true, 0}, {}), 60);
  EXPECT_EQ(hang_limit({true, 0}, {1, 1, 50}), 60) << "the median, at least 60 s";
  EXPECT_EQ(hang_limit({true, 0}, {20, 30, 300}), 300);
  EXPECT_EQ(patient_limit(3), 1800);
  EXPECT_EQ(patient_limit(1000), 10000);
}

TEST(Ranges, AreShortAndReadBack) {
  const std::vector<std::pair<Ranks, std::string>> all = {
      {{}, ""},           {{3}, "3"},
      {{0, 1, 2}, "0-2"}, {{1, 3, 5, 7}, "1-7:2"},
      {{0, 4}, "0,4"},    {{0, 1, 2, 8, 9, 20}, "0-2,8-9,20"},
  };
  for (const auto& [numbers, text] : all) {
    EXPECT_EQ(to_ranges(numbers), text);
    EXPECT_EQ(parse_ranges(text), numbers) << text;
  }
  for (const char* bad : {"x", "1-", "1-3:0", "1;2", "-"})
    EXPECT_FALSE(parse_ranges(bad).has_value()) << bad;
}

TEST(RankState, ReadsBackFromItsFile) {
  RankState s =
      rank_of(2, {group_of("world", {0, 1, 2, 3}, 9), waiting("data", {0, 2}, 4, 1.5)}, 1);
  s.answered = 3, s.written = 1234.5, s.node = "no\"de";
  const auto back = parse_rank_state(to_json(s));
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(to_json(*back), to_json(s));
  EXPECT_EQ(back->groups[1].members, (Ranks{0, 2}));
  const std::string text = to_json(s);
  for (const std::size_t cut : {std::size_t{0}, std::size_t{1}, text.size() / 2, text.size() - 1})
    EXPECT_FALSE(parse_rank_state(text.substr(0, cut)).has_value()) << cut;
}

TEST(FindFault, NamesTheSilentRankAndItsCollective) {
  // Ranks 0 and 1 share context, 2 and 3 too; 3 was stopped. 0 and 1 are stuck a call later, in the
  // gradients.
  const Ranks all = {0, 1, 2, 3};
  std::vector<RankState> states = {
      rank_of(0, {group_of("context", {0, 1}, 30), waiting("replicas", all, 8, 4)}, 1),
      rank_of(1, {group_of("context", {0, 1}, 30), waiting("replicas", all, 8, 4)}, 1),
      rank_of(2, {waiting("context", {2, 3}, 29, 6), group_of("replicas", all, 7)}, 0),
      rank_of(3, {group_of("context", {2, 3}, 20), group_of("replicas", all, 7)}, -1)};
  states[3].answered = 0;
  states[3].written = 90;
  const HangVerdict v = find_fault(states, 1, 0, 1);
  EXPECT_EQ(v.fault, Fault::kSilent);
  EXPECT_EQ(v.culprits, Ranks{3});
  EXPECT_EQ(v.missing, Ranks{3});
  EXPECT_EQ(v.collective,
            "all_reduce 29 of group context (ranks 2-3), 64 bytes of float32, step 5");
  const std::string text = describe(v, states, {"", "", "", "is stopped"}, 6, 100);
  EXPECT_NE(text.find("rank 3 (n3, process 103) is stopped (last heard of 10 s ago in step 5"),
            std::string::npos)
      << text;
}

TEST(FindFault, FollowsTheWaitsToTheOneThatWaitsForNobody) {
  const Ranks all = {0, 1, 2, 3};
  std::vector<RankState> states = {
      rank_of(0, {group_of("context", {0, 1}, 30), waiting("replicas", all, 8, 4)}, 1),
      rank_of(1, {group_of("context", {0, 1}, 30), waiting("replicas", all, 8, 4)}, 1),
      rank_of(2, {waiting("context", {2, 3}, 29, 6), group_of("replicas", all, 7)}, 0),
      rank_of(3, {group_of("context", {2, 3}, 28), group_of("replicas", all, 7)}, -1)};
  HangVerdict v = find_fault(states, 1, 0, 1);
  EXPECT_EQ(v.fault, Fault::kBehind);
  EXPECT_EQ(v.culprits, Ranks{3}) << "rank 2 is late too, but only because it waits for rank 3";
  EXPECT_FALSE(v.patient);
  const std::string text = describe(v, states, std::vector<std::string>(4), 6, 100);
  EXPECT_NE(text.find("rank 3 (n3, process 103) is slow or stuck: in forward and backward of step "
                      "5 for 12 s"),
            std::string::npos)
      << text;
  states[3].phase = "save", states[3].patient = true;
  EXPECT_TRUE(find_fault(states, 1, 0, 1).patient) << "a save may take long";
}

TEST(FindFault, LooksBehindTheRankThatWaitsItself) {
  // 0 waits for 2, which waits for 3, of which 0 knows nothing.
  std::vector<RankState> states = {
      rank_of(0, {waiting("replicas", {0, 2}, 8, 4)}, 0),
      rank_of(1, {waiting("replicas", {1, 3}, 8, 4)}, 0),
      rank_of(2, {waiting("context", {2, 3}, 29, 6), group_of("replicas", {0, 2}, 7)}, 0),
      rank_of(3, {group_of("context", {2, 3}, 28), group_of("replicas", {1, 3}, 7)}, -1)};
  const HangVerdict v = find_fault(states, 1, 0, 0);
  EXPECT_EQ(v.fault, Fault::kBehind);
  EXPECT_EQ(v.culprits, Ranks{3});
}

TEST(FindFault, SeesARankThatHasEndedAsAlive) {
  std::vector<RankState> states = {rank_of(0, {waiting("world", {0, 1}, 9, 70)}, 0),
                                   rank_of(1, {group_of("world", {0, 1}, 8)}, -1)};
  states[1].answered = 0, states[1].ended = true;
  EXPECT_EQ(find_fault(states, 1, 0, 0).fault, Fault::kBehind);
}

TEST(FindFault, TellsACircleFromAMismatchFromTheNetwork) {
  // Each waits in a group in which the other is a call behind.
  std::vector<RankState> circle = {
      rank_of(0, {waiting("context", {0, 1}, 5, 9), group_of("replicas", {0, 1}, 3)}, 0),
      rank_of(1, {group_of("context", {0, 1}, 4), waiting("replicas", {0, 1}, 4, 9)}, 1)};
  EXPECT_EQ(find_fault(circle, 1, 0, 0).fault, Fault::kDeadlock);

  std::vector<RankState> mismatch = {
      rank_of(0, {waiting("context", {0, 1}, 5, 9, "all_reduce", 64)}, 0),
      rank_of(1, {waiting("context", {0, 1}, 5, 9, "all_reduce", 32)}, 0)};
  EXPECT_EQ(find_fault(mismatch, 1, 0, 0).fault, Fault::kMismatch);
  EXPECT_EQ(find_fault(mismatch, 1, 0, 0).culprits, Ranks{1});

  std::vector<RankState> network = {rank_of(0, {waiting("context", {0, 1}, 5, 9)}, 0),
                                    rank_of(1, {waiting("context", {0, 1}, 5, 9)}, 0)};
  const HangVerdict v = find_fault(network, 1, 0, 0);
  EXPECT_EQ(v.fault, Fault::kNetwork);
  EXPECT_TRUE(v.missing.empty());
  EXPECT_NE(describe(v, network, {"", ""}, 9, 0).find("look at the network"), std::string::npos);
}

TEST(FindFault, NamesAFewOfMany) {
  std::vector<RankState> states;
  Ranks all;
  for (int r = 0; r < 64; ++r) all.push_back(r);
  for (int r = 0; r < 64; ++r) states.push_back(rank_of(r, {waiting("world", all, 9, 70)}, 0));
  for (int r = 32; r < 64; ++r) states[static_cast<std::size_t>(r)].answered = 0;
  const HangVerdict v = find_fault(states, 1, 0, 0);
  EXPECT_EQ(v.culprits.size(), 32u);
  const std::string text = describe(v, states, std::vector<std::string>(64), 70, 0);
  EXPECT_NE(text.find("28 more"), std::string::npos) << text;
  EXPECT_NE(text.find("where ranks 32-63 have not arrived"), std::string::npos) << text;
}

}  // namespace
}  // namespace longspan::parallel
