// ranks: 2 3
/// Every collective is in the recorder, under the same number on every rank; the ring keeps the
/// last ones.
#include "parallel/flight_recorder.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "parallel/process_group.hpp"
#include "support/ranks.hpp"

namespace longspan::flight {
namespace {

std::vector<Record> records_of(int group) {
  std::vector<Record> found;
  for (const Record& r : recorder().snapshot(true).records)
    if (r.group == group) found.push_back(r);
  return found;
}

/// The only group that a transfer thread serves.
GroupState transfers() {
  for (const GroupState& g : recorder().snapshot(false).groups)
    if (g.thread == Thread::kTransfer) return g;
  return {};
}

TEST(FlightRecorder, HasSmallCollectivesInOrder) {
  const Communicator world = Communicator::world();
  const Communicator part = world.split(0, world.rank(), "context");
  recorder().enter(Phase::kCompute, 7);
  part.all_reduce_sum(std::int64_t{1});
  part.barrier();
  part.broadcast(std::string("four"), 0);
  const auto records = records_of(part.flight_group());
  recorder().enter(Phase::kStart, 0);
  bool good = records.size() == 4;  // a text is its length and its letters
  if (good)
    good = records[0].operation == Operation::kAllReduce && records[0].bytes == 8 &&
           records[0].element == Element::kInt64 && records[1].operation == Operation::kBarrier &&
           records[3].operation == Operation::kBroadcast && records[3].bytes == 4;
  EXPECT_ALL_RANKS(good);
  for (std::size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i].sequence, static_cast<std::int64_t>(i) + 1);
    EXPECT_EQ(records[i].step, 7);
    EXPECT_EQ(records[i].phase, Phase::kCompute);
    ASSERT_TRUE(records[i].end.has_value());
    EXPECT_GE(*records[i].end, records[i].begin);
  }
}

TEST(FlightRecorder, HasTheTransfersOfAProcessGroup) {
  const Communicator world = Communicator::world();
  const auto group = make_mpi_group(world);
  const GroupState state = transfers();
  EXPECT_ALL_RANKS(state.name == "world" && state.copy > 0);
  EXPECT_ALL_RANKS(state.members.size() == static_cast<std::size_t>(world.size()));
  std::vector<float> data(100), all(100 * static_cast<std::size_t>(world.size()));
  const View<float> view(data.data(), 100), gathered(all.data(), 100 * world.size());
  group->all_reduce_sum(view)->wait();
  group->all_gather(view, gathered)->wait();
  world.barrier();
  const auto records = records_of(state.id);
  EXPECT_ALL_RANKS(records.size() == 2 && records[0].operation == Operation::kAllReduce &&
                   records[0].sequence == 1 && records[0].bytes == 400 &&
                   records[1].operation == Operation::kAllGather && records[1].sequence == 2 &&
                   records[1].element == Element::kFloat32);
}

TEST(FlightRecorder, ShowsWhatIsWaitedForAndCountsTheSeconds) {
  constexpr double kLate = 0.3;
  const Communicator world = Communicator::world();
  const auto group = make_mpi_group(world);
  const int id = transfers().id;
  const bool late = world.rank() == world.size() - 1;
  std::vector<float> data(8);
  world.barrier();
  const double before = recorder().waited_seconds();
  Snapshot seen;
  std::thread observer([&] {
    std::this_thread::sleep_for(std::chrono::duration<double>(kLate / 2));
    seen = recorder().snapshot(false);
  });
  if (late) std::this_thread::sleep_for(std::chrono::duration<double>(kLate));
  group->all_reduce_sum(View<float>(data.data(), 8))->wait();
  observer.join();
  const double waited = recorder().waited_seconds() - before;
  if (late) {
    EXPECT_FALSE(seen.wait.has_value());
  } else {
    EXPECT_TRUE(seen.wait && seen.wait->group == id && seen.wait->sequence == 1);
    EXPECT_GT(waited, kLate / 2);
  }
  EXPECT_FALSE(recorder().snapshot(false).wait.has_value());
  world.barrier();
}

TEST(FlightRecorder, KeepsTheLastOnesAndWhatIsStillOpen) {
  Recorder own;
  const int slow = own.begin_group("data", {0, 1}, Thread::kTransfer);
  const int busy = own.begin_group("context", {0, 1}, Thread::kTransfer);
  const auto ticket = own.begin(slow, Operation::kAllGather, Element::kFloat32, 64);
  const auto many = static_cast<std::int64_t>(3 * Recorder::kRecords);
  for (std::int64_t i = 0; i < many; ++i)
    own.end(busy, own.begin(busy, Operation::kBarrier, Element::kByte, 0));
  Snapshot all = own.snapshot(true);
  ASSERT_EQ(all.records.size(), Recorder::kRecords);
  EXPECT_EQ(all.records.back().sequence, many);
  EXPECT_EQ(all.records.front().sequence, many - static_cast<std::int64_t>(Recorder::kRecords) + 1);
  ASSERT_TRUE(all.groups[0].open.has_value()) << "the ring has overtaken it, its group has not";
  EXPECT_EQ(all.groups[0].open->bytes, 64);
  own.end(slow, ticket);
  EXPECT_FALSE(own.snapshot(false).groups[0].open.has_value());
  EXPECT_TRUE(std::all_of(all.records.begin(), all.records.end(),
                          [](const Record& r) { return r.end.has_value(); }));
}

TEST(FlightRecorder, TellsDuplicatesApart) {
  Recorder own;
  const auto copy = [&](int id) {
    for (const GroupState& group : own.snapshot(false).groups)
      if (group.id == id) return group.copy;
    return -1;
  };
  const int first = own.begin_group("world", {0, 1}, Thread::kTraining);
  const int second = own.begin_group("world", {0, 1}, Thread::kTransfer);
  const int other = own.begin_group("world", {0, 2}, Thread::kTraining);
  EXPECT_EQ(copy(first), 0);
  EXPECT_EQ(copy(second), 1);
  EXPECT_EQ(copy(other), 0);
  own.end_group(first);
  const int third = own.begin_group("world", {0, 1}, Thread::kTraining);
  EXPECT_NE(third, first) << "records of the old one would be taken for its own";
  EXPECT_EQ(copy(third), 2);
}

}  // namespace
}  // namespace longspan::flight
