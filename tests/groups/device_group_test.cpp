// ranks: 1 2 3 4
/// Groups on device memory against the MPI group on host memory: the same bits, in the order of the
/// compute stream.
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <string>

#include "groups/device_group.hpp"
#include "groups/fake_nccl.hpp"
#include "parallel/cuda/nccl_group.hpp"
#include "parallel/cuda/staged_group.hpp"
#include "support/ranks.hpp"

namespace longspan {
namespace {

using namespace groups_test;

struct Kind {
  std::string name;
  std::function<std::unique_ptr<ProcessGroup>(const Communicator&, cudaStream_t)> make;
};

class DeviceGroup : public testing::TestWithParam<Kind> {
 protected:
  const Communicator world_ = Communicator::world();
  const int me_ = world_.rank(), ranks_ = world_.size();
  cuda::CudaStream compute_;
  const std::unique_ptr<ProcessGroup> host_ = make_mpi_group(world_);
  const std::unique_ptr<ProcessGroup> device_ = GetParam().make(world_, compute_.native());

  void TearDown() override { EXPECT_EQ(nccl_faults().used_while_in_progress, 0); }
};

/// Nothing, fewer than ranks, uneven, and several chunks of a buffer.
const std::int64_t kLengths[] = {0, 1, 2, 5, 1003, (2 << 20) + 5};

TEST_P(DeviceGroup, AllReduceGivesTheBitsOfTheHost) {
  for (const std::int64_t count : kLengths) {
    auto expected = values_of(me_, count);
    const OnDevice data(compute_, expected);
    const auto pending = device_->all_reduce_sum(data.view());
    host_->all_reduce_sum(view(expected))->wait();
    pending->wait();
    EXPECT_ALL_RANKS(same(data.read(), expected));
  }
  // A chunk's parts are not rounded like those of the whole.
  EXPECT_ALL_RANKS(std::abs(device_->bytes_sent() - host_->bytes_sent()) < 100);
}

TEST_P(DeviceGroup, AllGatherAndReduceScatter) {
  for (const std::int64_t count : {0, 1, 1003, (1 << 20) + 3}) {
    auto mine = values_of(me_, count);
    std::vector<float> expected(static_cast<std::size_t>(count * ranks_));
    const OnDevice part(compute_, mine), all(compute_, count * ranks_);
    const auto gathered = device_->all_gather(part.view(), all.view());
    host_->all_gather(view(mine), view(expected))->wait();
    gathered->wait();
    EXPECT_ALL_RANKS(same(all.read(), expected));

    auto parts = values_of(me_, count * ranks_);
    std::vector<float> sum(static_cast<std::size_t>(count));
    const OnDevice before(compute_, parts), own(compute_, count);
    const auto scattered = device_->reduce_scatter_sum(before.view(), own.view());
    host_->reduce_scatter_sum(view(parts), view(sum))->wait();
    scattered->wait();
    EXPECT_ALL_RANKS(same(own.read(), sum));
    EXPECT_ALL_RANKS(same(before.read(), parts));
  }
  EXPECT_ALL_RANKS(device_->bytes_sent() == host_->bytes_sent());
}

TEST_P(DeviceGroup, AllGatherOfItsOwnPart) {
  const std::int64_t count = 1003;
  std::vector<float> expected(static_cast<std::size_t>(count * ranks_));
  const auto all = values_of(me_, count * ranks_);
  const OnDevice data(compute_, all);
  device_->all_gather(data.view().slice(me_ * count, count), data.view())->wait();
  auto mine = std::vector<float>(all.begin() + me_ * count, all.begin() + (me_ + 1) * count);
  host_->all_gather(view(mine), view(expected))->wait();
  EXPECT_ALL_RANKS(same(data.read(), expected));
}

TEST_P(DeviceGroup, PartsInPlace) {
  for (const std::int64_t count : kLengths) {
    auto expected = values_of(me_, count);
    const OnDevice data(compute_, expected);
    device_->reduce_scatter_parts(data.view())->wait();
    host_->reduce_scatter_parts(view(expected))->wait();
    EXPECT_ALL_RANKS(same(data.read(), expected));
    device_->all_gather_parts(data.view())->wait();
    host_->all_gather_parts(view(expected))->wait();
    EXPECT_ALL_RANKS(same(data.read(), expected));
  }
  EXPECT_ALL_RANKS(device_->bytes_sent() == host_->bytes_sent());
}

TEST_P(DeviceGroup, SendReceiveInARingOfUnequalLengths) {
  const int next = (me_ + 1) % ranks_, previous = (me_ + ranks_ - 1) % ranks_;
  for (const std::int64_t unit : {0, 1, 700, 1 << 20}) {
    // Rank r sends (r + 1) units; of one rank, to itself.
    const std::int64_t out = unit * (me_ + 1), in = unit * (previous + 1);
    const OnDevice outgoing(compute_, values_of(me_, out)), incoming(compute_, in);
    device_->send_receive(outgoing.view(), next, incoming.view(), previous)->wait();
    EXPECT_ALL_RANKS(same(incoming.read(), values_of(previous, in)));
  }
}

TEST_P(DeviceGroup, AllToAllOfUnevenParts) {
  for (const std::int64_t unit : {37, 300000}) {
    const auto count = [&](int from, int to) { return unit * ((2 * from + to) % 3); };
    std::vector<std::int64_t> out, in;
    for (int r = 0; r < ranks_; ++r) out.push_back(count(me_, r)), in.push_back(count(r, me_));
    const std::int64_t sent = std::accumulate(out.begin(), out.end(), std::int64_t{0}),
                       received = std::accumulate(in.begin(), in.end(), std::int64_t{0});
    auto mine = values_of(me_, sent);
    std::vector<float> expected(static_cast<std::size_t>(received));
    const OnDevice outgoing(compute_, mine), incoming(compute_, received);
    device_->all_to_all(outgoing.view(), out, incoming.view(), in)->wait();
    host_->all_to_all(view(mine), out, view(expected), in)->wait();
    EXPECT_ALL_RANKS(same(incoming.read(), expected));
  }
  EXPECT_ALL_RANKS(device_->bytes_sent() == host_->bytes_sent());
}

TEST_P(DeviceGroup, RefusesCountsThatDoNotFit) {
  const OnDevice data(compute_, 5 * ranks_), other(compute_, 5 * ranks_);
  const std::vector<std::int64_t> right(static_cast<std::size_t>(ranks_), 5),
      wrong(static_cast<std::size_t>(ranks_), 4);
  const auto refused = [&](const auto& out, const auto& in) {
    try {
      device_->all_to_all(data.view(), out, other.view(), in)->wait();
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  EXPECT_ALL_RANKS(!refused(right, right));
  EXPECT_ALL_RANKS(refused(wrong, right) && refused(right, wrong));
}

TEST_P(DeviceGroup, ManyAtOnceInAnyOrderOfWaits) {
  std::vector<std::unique_ptr<OnDevice>> data;
  std::vector<std::vector<float>> expected;
  std::vector<PendingPtr> pending;
  for (int i = 0; i < 8; ++i) {
    expected.push_back(values_of(me_, 100 + 300000 * (i % 2)));
    data.push_back(std::make_unique<OnDevice>(compute_, expected.back()));
    pending.push_back(device_->all_reduce_sum(data.back()->view()));
    host_->all_reduce_sum(view(expected.back()))->wait();
  }
  bool right = true;
  for (std::size_t i = 8; i-- > 0;) {
    pending[i]->wait();
    right = right && same(data[i]->read(), expected[i]);
  }
  EXPECT_ALL_RANKS(right);
}

TEST_P(DeviceGroup, CountsWhatWasWaitedFor) {
  world_.barrier();
  if (me_ == 0)
    LONGSPAN_CUDA(cudaLaunchHostFunc(
        compute_.native(),
        [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(300)); }, nullptr));
  const OnDevice data(compute_, values_of(me_, 100));
  device_->all_reduce_sum(data.view())->wait();
  compute_.synchronize();
  // The watcher of a group may see the end a moment later.
  for (int i = 0; i < 100 && device_->exposed_seconds() == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_ALL_RANKS(me_ == 0 || device_->exposed_seconds() > 0.1);
  EXPECT_ALL_RANKS(device_->exposed_seconds() < 30);
}

/// What the compute stream does after the operation was started may not reach it, and what it does
/// before wait() is not held up.
TEST_P(DeviceGroup, OnlyWhatWaitsIsOrderedBehind) {
  auto expected = values_of(me_, 5000);
  const OnDevice data(compute_, expected), other(compute_, values_of(7, 5000));
  const auto pending = device_->all_reduce_sum(data.view());
  EXPECT_TRUE(same(other.read(), values_of(7, 5000)));
  pending->wait();
  LONGSPAN_CUDA(cudaMemsetAsync(data.view().data(), 0, 2000, compute_.native()));
  host_->all_reduce_sum(view(expected))->wait();
  std::fill_n(expected.begin(), 500, 0.0f);
  EXPECT_ALL_RANKS(same(data.read(), expected));
}

std::unique_ptr<ProcessGroup> staged(const Communicator& comm, cudaStream_t compute) {
  return cuda::make_staged_group(comm, 0, compute);
}
std::unique_ptr<ProcessGroup> nccl(const Communicator& comm, cudaStream_t compute) {
  nccl_faults().reset();
  return cuda::make_nccl_group(fake_nccl(), comm, 0, compute, {});
}
/// Whose calls take a while to be handed over.
std::unique_ptr<ProcessGroup> slow_nccl(const Communicator& comm, cudaStream_t compute) {
  auto group = nccl(comm, compute);
  nccl_faults().polls_in_progress = 3;
  return group;
}

INSTANTIATE_TEST_SUITE_P(, DeviceGroup,
                         testing::Values(Kind{"staged", staged}, Kind{"nccl", nccl},
                                         Kind{"slow_nccl", slow_nccl}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace longspan
