// ranks: 2 4
/// What NCCL groups do when a rank, the network or a call fails: every rank learns of it in time,
/// with who was where, and nothing stays blocked.
#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <string>

#include "groups/device_group.hpp"
#include "groups/fake_nccl.hpp"
#include "parallel/cuda/nccl_group.hpp"
#include "support/ranks.hpp"

namespace longspan {
namespace {

using namespace groups_test;
using flight::Clock;

class NcclFailure : public testing::Test {
 protected:
  void SetUp() override {
    nccl_faults().reset();
    world_.barrier();
  }
  std::unique_ptr<ProcessGroup> make(double deadline, double answers = 5, double setup = 20) {
    return cuda::make_nccl_group(fake_nccl(), world_, 0, compute_.native(),
                                 {deadline, setup, answers});
  }
  /// What `work` throws; empty if nothing.
  static std::string error_of(const std::function<void()>& work) {
    try {
      work();
      return "";
    } catch (const Error& e) {
      return e.what();
    }
  }
  /// All-reduces till the group has failed.
  std::string until_failure(ProcessGroup& group, std::int64_t count = 100) {
    const auto begin = Clock::now();
    std::string error;
    while (error.empty() && Clock::now() - begin < std::chrono::seconds(20)) {
      const OnDevice data(compute_, values_of(me_, count));
      error = error_of([&] { group.all_reduce_sum(data.view())->wait(); });
      compute_.synchronize();  // never blocks for ever: the abort lets it go on
    }
    return error;
  }
  static void until_aborted() {
    const auto begin = Clock::now();
    while (nccl_faults().aborts == 0 && Clock::now() - begin < std::chrono::seconds(20))
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  static bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }
  std::string members() const { return fmt::format("(ranks 0-{})", ranks_ - 1); }

  const Communicator world_ = Communicator::world();
  const int me_ = world_.rank(), ranks_ = world_.size(), last_ = ranks_ - 1;
  cuda::CudaStream compute_;
};

TEST_F(NcclFailure, ARankThatDoesNotComeIsNamedByAllOthers) {
  const auto group = make(0.5);
  const OnDevice data(compute_, values_of(me_, 1000));
  group->all_reduce_sum(data.view())->wait();
  compute_.synchronize();
  std::string error;
  const auto begin = Clock::now();
  if (me_ == last_) until_aborted();  // learns of it without having called anything
  error = until_failure(*group);
  EXPECT_ALL_RANKS(Clock::now() - begin < std::chrono::seconds(20));
  const std::string call = "NCCL: all_reduce 2 of group world " + members() + ", 400 bytes: ";
  EXPECT_ALL_RANKS(me_ == last_ ? has(error, "another rank had given up") : has(error, call));
  EXPECT_ALL_RANKS(me_ != 0 || has(error, "no progress for 0.5 s") ||
                   has(error, "another rank had given up"));
  EXPECT_ALL_RANKS(me_ == last_ ||
                   has(error, fmt::format("rank {} had started 1 calls and finished 1", last_)));
  EXPECT_ALL_RANKS(nccl_faults().aborts == 1 && nccl_faults().destroys == 0);
  // It stays that way, for every call.
  EXPECT_ALL_RANKS(error == error_of([&] { group->all_gather_parts(data.view()); }));
}

TEST_F(NcclFailure, TheRecorderKnowsWhatTheDeviceWaitsFor) {
  const auto group = make(1.5);
  const OnDevice data(compute_, values_of(me_, 1000));
  bool waits = false, failed = false;
  if (me_ != last_) {
    const auto pending = group->all_reduce_sum(data.view());
    std::thread waiter([&] { error_of([&] { pending->wait(); }); });
    for (int i = 0; i < 200 && !waits; ++i) {
      const auto snapshot = flight::recorder().snapshot(false);
      for (const auto& g : snapshot.groups)
        waits = waits || (g.open && snapshot.wait && snapshot.wait->group == g.id &&
                          snapshot.wait->sequence == 1 &&
                          g.open->operation == flight::Operation::kAllReduce &&
                          g.open->bytes == 4000 && g.thread == flight::Thread::kTransfer);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    waiter.join();
    compute_.synchronize();
    until_failure(*group);
    for (const auto& record : flight::recorder().snapshot(true).records)
      failed = failed || (record.failed && record.bytes == 4000 && !record.end);
  } else {
    until_aborted();
  }
  EXPECT_ALL_RANKS(me_ == last_ || waits);
  EXPECT_ALL_RANKS(me_ == last_ || failed);
}

TEST_F(NcclFailure, AnErrorOfOneRankReachesAll) {
  const auto group = make(0);  // no deadline: the error alone ends it
  if (me_ == 0) nccl_faults().error_from_call = 3;
  if (me_ == 0) nccl_faults().hang_from_call = 3;
  const std::string error = until_failure(*group);
  EXPECT_ALL_RANKS(has(error, "of group world " + members()));
  EXPECT_ALL_RANKS(me_ != 0 || has(error, "all_reduce 4 "));
  EXPECT_ALL_RANKS(me_ != 0 ||
                   has(error, "remote process exited or there was a network error (the fake says"));
  EXPECT_ALL_RANKS(me_ == 0 || has(error, "another rank had given up"));
  EXPECT_ALL_RANKS(me_ == 0 || has(error, "(remote process exited"));
  EXPECT_ALL_RANKS(nccl_faults().aborts == 1);
}

/// An abort lets the streams go on: the wait may not return as if the data had come.
TEST_F(NcclFailure, AWaitNeverReturnsWithoutTheData) {
  const auto group = make(0.3, 0.2);
  nccl_faults().hang_from_call = 0;
  const OnDevice data(compute_, values_of(me_, 100));
  const auto pending = group->all_reduce_sum(data.view());
  const std::string error = error_of([&] { pending->wait(); });
  EXPECT_ALL_RANKS(has(error, "NCCL: all_reduce 1 of group world " + members()));
}

TEST_F(NcclFailure, ACallThatNcclRefusesIsAnError) {
  const auto group = make(0);
  if (me_ == last_) nccl_faults().refuse_call = 1;
  const std::string error = until_failure(*group);
  EXPECT_ALL_RANKS(me_ != last_ || has(error, "all_reduce 2 of group world"));
  EXPECT_ALL_RANKS(me_ != last_ || has(error, "a fake error"));
  EXPECT_ALL_RANKS(!error.empty());
  EXPECT_ALL_RANKS(error.find('\n') == std::string::npos);
}

TEST_F(NcclFailure, ConnectingFailsOnAllRanksTogether) {
  if (me_ == last_) nccl_faults().fail_connect = true;
  std::string error = error_of([&] { make(0); });
  EXPECT_ALL_RANKS(has(error, "NCCL: connecting group world " + members()));
  EXPECT_ALL_RANKS(me_ != last_ || has(error, "a fake error"));
  nccl_faults().reset();
  world_.barrier();
  if (me_ == last_) nccl_faults().hang_connect = true;
  error = error_of([&] { make(0, 5, 0.5); });
  EXPECT_ALL_RANKS(has(error, "NCCL: connecting group world " + members()));
  EXPECT_ALL_RANKS(has(error, "no progress") || has(error, "another rank had given up"));
}

TEST_F(NcclFailure, ARankThatLeavesWithAnErrorWaitsForNobody) {
  const auto begin = Clock::now();
  std::string error;
  if (me_ == last_) {
    // Its call will never end; unwinding drops it all.
    const OnDevice data(compute_, values_of(me_, 100));
    error = error_of([&] {
      const auto group = make(0);
      nccl_faults().hang_from_call = 0;
      const auto pending = group->all_reduce_sum(data.view());
      throw Error("something else");
    });
    EXPECT_EQ(error, "something else");
    EXPECT_EQ(nccl_faults().aborts, 1);
  } else {
    const auto group = make(0.5, 0.3);
    error = until_failure(*group);
    EXPECT_TRUE(has(error, "NCCL: all_reduce 1 of group world")) << error;
    EXPECT_TRUE(has(error, fmt::format("; rank {} does not answer", last_))) << error;
  }
  EXPECT_ALL_RANKS(Clock::now() - begin < std::chrono::seconds(20));
}

TEST_F(NcclFailure, WorkBeforeTheCallIsNoHang) {
  const auto group = make(0.4);
  LONGSPAN_CUDA(cudaLaunchHostFunc(
      compute_.native(),
      [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(1000)); }, nullptr));
  auto expected = values_of(me_, 100);
  const OnDevice data(compute_, expected);
  group->all_reduce_sum(data.view())->wait();
  const auto host = make_mpi_group(world_);
  host->all_reduce_sum(view(expected))->wait();
  EXPECT_ALL_RANKS(same(data.read(), expected));
}

TEST_F(NcclFailure, ADroppedCallStillOrdersTheStream) {
  {
    const auto group = make(5);
    auto expected = values_of(me_, 100000);
    const OnDevice data(compute_, expected);
    { const auto dropped = group->all_reduce_sum(data.view()); }
    const auto host = make_mpi_group(world_);
    host->all_reduce_sum(view(expected))->wait();
    EXPECT_ALL_RANKS(same(data.read(), expected));
  }
  EXPECT_ALL_RANKS(nccl_faults().destroys == 1 && nccl_faults().aborts == 0);
}

}  // namespace
}  // namespace longspan
