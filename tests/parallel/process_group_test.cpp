// ranks: 1 2 3 4
#include "parallel/process_group.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "parallel/agree.hpp"
#include "parallel/data_parallel.hpp"
#include "parallel/random.hpp"
#include "support/ranks.hpp"

namespace longspan {
namespace {

std::vector<float> values_of(int rank, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i)
    values[static_cast<std::size_t>(i)] =
        normal_at(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(i));
  return values;
}

/// Rank order, as process_group.hpp promises.
std::vector<float> sum_of_all(int ranks, std::int64_t count) {
  std::vector<float> sum = values_of(0, count);
  for (int r = 1; r < ranks; ++r) {
    const auto part = values_of(r, count);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  return sum;
}

View<float> view(std::vector<float>& v) {
  return {v.data(), static_cast<std::int64_t>(v.size())};
}

TEST(ProcessGroup, AllReduceSumsInRankOrderBitForBit) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  for (std::int64_t count : {1, 2, 5, 1000, 100003}) {
    auto mine = values_of(world.rank(), count);
    group->all_reduce_sum(view(mine))->wait();
    EXPECT_ALL_RANKS(mine == sum_of_all(world.size(), count));
  }
}

TEST(ProcessGroup, AllGatherAndReduceScatter) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const std::int64_t count = 1003, ranks = world.size();
  auto mine = values_of(world.rank(), count);
  std::vector<float> all(static_cast<std::size_t>(count * ranks));
  group->all_gather(view(mine), view(all))->wait();
  bool right = true;
  for (int r = 0; r < ranks; ++r)
    right = right && std::memcmp(all.data() + r * count, values_of(r, count).data(),
                                 count * sizeof(float)) == 0;
  EXPECT_ALL_RANKS(right);

  auto parts = values_of(world.rank(), count * ranks);
  std::vector<float> part(static_cast<std::size_t>(count));
  group->reduce_scatter_sum(view(parts), view(part))->wait();
  const auto expected = sum_of_all(world.size(), count * ranks);
  EXPECT_ALL_RANKS(
      std::memcmp(part.data(), expected.data() + world.rank() * count, count * sizeof(float)) == 0);
}

TEST(ProcessGroup, RingOfSendReceiveComesHomeAndCountsItsBytes) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const int ranks = world.size(), next = (world.rank() + 1) % ranks,
            previous = (world.rank() + ranks - 1) % ranks;
  auto here = values_of(world.rank(), 5000);
  std::vector<float> arriving(here.size());
  const std::int64_t before = group->bytes_sent();
  for (int step = 0; step < ranks; ++step) {
    group->send_receive(view(here), next, view(arriving), previous)->wait();
    std::swap(here, arriving);
  }
  EXPECT_ALL_RANKS(here == values_of(world.rank(), 5000));
  EXPECT_ALL_RANKS(group->bytes_sent() - before == (ranks == 1 ? 0 : ranks * 5000 * 4));
}

TEST(ProcessGroup, AllToAllOfUnevenPartsComesBackAndCountsItsBytes) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const int ranks = world.size(), me = world.rank();
  // Rank `from` sends so many elements to `to`; some send nothing, and to themselves.
  const auto count = [](int from, int to) { return std::int64_t{37} * ((2 * from + to) % 3); };
  std::vector<std::int64_t> out, in;
  for (int r = 0; r < ranks; ++r) out.push_back(count(me, r)), in.push_back(count(r, me));
  auto mine = values_of(me, std::accumulate(out.begin(), out.end(), std::int64_t{0}));
  std::vector<float> expected;
  for (int r = 0; r < ranks; ++r) {
    std::int64_t begin = 0, total = 0;
    for (int to = 0; to < ranks; ++to) begin += to < me ? count(r, to) : 0, total += count(r, to);
    const auto theirs = values_of(r, total);
    expected.insert(expected.end(), theirs.begin() + begin, theirs.begin() + begin + count(r, me));
  }
  std::vector<float> arrived(expected.size(), -1.0f), home(mine.size(), -1.0f);
  group->all_to_all(view(mine), out, view(arrived), in)->wait();
  EXPECT_ALL_RANKS(arrived == expected);
  const std::int64_t sent = 4 * (static_cast<std::int64_t>(mine.size()) - count(me, me));
  EXPECT_ALL_RANKS(group->bytes_sent() == sent);
  group->all_to_all(view(arrived), in, view(home), out)->wait();
  EXPECT_ALL_RANKS(home == mine);
}

TEST(ProcessGroup, AllToAllRefusesCountsThatDoNotFit) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const auto ranks = static_cast<std::size_t>(world.size());
  std::vector<float> data(5 * ranks), other(data.size());
  const std::vector<std::int64_t> right(ranks, 5), wrong(ranks, 4), too_many(ranks + 1, 0);
  const auto refused = [&](const std::vector<std::int64_t>& out,
                           const std::vector<std::int64_t>& in) {
    try {
      group->all_to_all(view(data), out, view(other), in)->wait();
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  EXPECT_ALL_RANKS(!refused(right, right));
  EXPECT_ALL_RANKS(refused(wrong, right) && refused(right, wrong) && refused(too_many, right));
}

TEST(ProcessGroup, SeveralOperationsAtOnceFinishInAnyOrderOfWaits) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  std::vector<std::vector<float>> data;
  std::vector<PendingPtr> pending;
  for (int i = 0; i < 8; ++i) data.push_back(values_of(world.rank(), 100 + i));
  for (auto& d : data) pending.push_back(group->all_reduce_sum(view(d)));
  for (int i = 7; i >= 0; --i) pending[static_cast<std::size_t>(i)]->wait();
  bool right = true;
  for (int i = 0; i < 8; ++i)
    right = right && data[static_cast<std::size_t>(i)] == sum_of_all(world.size(), 100 + i);
  EXPECT_ALL_RANKS(right);
}

TEST(ProcessGroup, PartsOfAnyLengthAreReducedAndGatheredInPlace) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const int me = world.rank(), ranks = world.size();
  // Fewer elements than ranks, none at all, and more than are summed at a time.
  for (std::int64_t count : {0, 1, 2, 5, 1003, (1 << 22) + 5}) {
    const auto expected = sum_of_all(ranks, count);
    auto mine = values_of(me, count);
    const auto before = mine;
    group->reduce_scatter_parts(view(mine))->wait();
    const auto begin = static_cast<std::ptrdiff_t>(part_begin(count, me, ranks)),
               end = static_cast<std::ptrdiff_t>(part_begin(count, me + 1, ranks));
    EXPECT_ALL_RANKS(
        std::equal(mine.begin() + begin, mine.begin() + end, expected.begin() + begin));
    EXPECT_ALL_RANKS(std::equal(mine.begin(), mine.begin() + begin, before.begin()) &&
                     std::equal(mine.begin() + end, mine.end(), before.begin() + end));
    group->all_gather_parts(view(mine))->wait();
    EXPECT_ALL_RANKS(mine == expected);
  }
}

TEST(GradientReducer, BucketsDoNotDependOnWhenGradientsBecomeReady) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const std::int64_t count = 10007;
  for (std::int64_t pace : {1, 100, 3000, 20000}) {
    auto gradients = values_of(world.rank(), count);
    GradientReducer reducer(*group, view(gradients), 1024);
    for (int step = 0; step < 2; ++step) {
      const auto fresh = values_of(world.rank(), count);
      std::copy(fresh.begin(), fresh.end(), gradients.begin());
      for (std::int64_t begin = count; begin > 0; begin -= pace)
        reducer.ready_from(std::max<std::int64_t>(0, begin - pace));
      reducer.finish();
      EXPECT_ALL_RANKS(gradients == sum_of_all(world.size(), count));
    }
  }
}

TEST(Agree, EveryRankThrowsTheLowestFailure) {
  const auto world = Communicator::world();
  agree(world, [] {});
  std::string message;
  try {
    agree(world, [&] {
      if (world.rank() >= world.size() / 2)
        throw Error("rank " + std::to_string(world.rank()), ExitStatus::kDamaged);
    });
  } catch (const AgreedError& e) {
    message = e.what();
    EXPECT_EQ(e.status(), ExitStatus::kDamaged);
  }
  EXPECT_ALL_RANKS(message == "rank " + std::to_string(world.size() / 2));
}

TEST(Communicator, SmallCollectives) {
  const auto world = Communicator::world();
  EXPECT_ALL_RANKS(world.all_reduce_sum(std::int64_t{world.rank() + 1}) ==
                   world.size() * (world.size() + 1) / 2);
  const auto texts = world.gather(std::string(static_cast<std::size_t>(world.rank()), 'x'), 0);
  EXPECT_ALL_RANKS(world.rank() != 0 || (texts.size() == static_cast<std::size_t>(world.size()) &&
                                         texts.back().size() + 1 == texts.size()));
  EXPECT_ALL_RANKS(world.broadcast(world.rank() == 0 ? "hello" : "", 0) == "hello");
  EXPECT_ALL_RANKS(world.split(world.rank() % 2, 0).size() ==
                   (world.size() + 1 - world.rank() % 2) / 2);
}

}  // namespace
}  // namespace longspan
