/// memory.offload=host against streams that are threads: groups come back with their bits, in the
/// order of the compute stream, while their device memory serves others.
#include "parallel/cuda/host_offload.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "groups/device_group.hpp"

namespace longspan {
namespace {

using namespace groups_test;

class HostOffload : public testing::Test {
 protected:
  cudaStream_t compute() { return cuda::native(device_.stream()); }
  void busy(int milliseconds) {
    LONGSPAN_CUDA(cudaLaunchHostFunc(
        compute(),
        [](void* data) {
          std::this_thread::sleep_for(
              std::chrono::milliseconds(reinterpret_cast<std::intptr_t>(data)));
        },
        reinterpret_cast<void*>(static_cast<std::intptr_t>(milliseconds))));
  }
  /// On the compute stream, as a kernel would, and late.
  Buffer<float> made(int number, std::int64_t rows, std::int64_t cols) {
    Buffer<float> buffer(device_, rows, cols);
    busy(1);
    const std::size_t bytes = static_cast<std::size_t>(rows * cols) * sizeof(float);
    sources_.push_back(values_of(number, rows * cols));
    LONGSPAN_CUDA(cudaMemcpyAsync(buffer.data(), sources_.back().data(), bytes, cudaMemcpyDefault,
                                  compute()));
    return buffer;
  }
  std::vector<float> read(const Buffer<float>& buffer) {
    std::vector<float> values(static_cast<std::size_t>(buffer.size()));
    LONGSPAN_CUDA(cudaMemcpyAsync(values.data(), buffer.data(), values.size() * sizeof(float),
                                  cudaMemcpyDefault, compute()));
    device_.stream().synchronize();
    return values;
  }

  std::vector<std::vector<float>> sources_;
  cuda::CudaDevice device_{0};
  std::unique_ptr<OffloadStack> stack_ = cuda::make_host_offload(device_);
};

TEST_F(HostOffload, EveryGroupComesBackInEveryPass) {
  sources_.reserve(1000);
  constexpr int kLayers = 6;
  for (int pass = 0; pass < 3; ++pass) {
    // Larger in the second pass: memory of the host is made anew.
    const std::int64_t rows = pass == 1 ? 700 : 300;
    for (int i = 0; i < kLayers; ++i) {
      OffloadStack::Group group;
      group.push_back(made(10 * pass + i, rows, 64));
      group.push_back(i == 2 ? Buffer<float>() : made(100 + 10 * pass + i, 7, 3));
      stack_->push(std::move(group));
      // What was given back is used at once.
      const Buffer<float> other = made(55, rows, 64);
      EXPECT_TRUE(same(read(other), values_of(55, rows * 64)));
    }
    for (int i = kLayers; i-- > 0;) {
      const OffloadStack::Group group = stack_->pop();
      stack_->prefetch();
      const Buffer<float> other = made(56, rows, 64);
      ASSERT_EQ(group.size(), 2u);
      EXPECT_EQ(group[0].rows(), rows);
      EXPECT_TRUE(same(read(group[0]), values_of(10 * pass + i, rows * 64))) << pass << " " << i;
      EXPECT_EQ(group[1].empty(), i == 2);
      if (i != 2) {
        EXPECT_TRUE(same(read(group[1]), values_of(100 + 10 * pass + i, 21)));
      }
      EXPECT_TRUE(same(read(other), values_of(56, rows * 64)));
    }
  }
  EXPECT_EQ(device_.bytes_in_use(), 0);
}

TEST_F(HostOffload, AtMostOneGroupIsOnItsWay) {
  sources_.reserve(1000);
  const std::int64_t bytes = 1000 * 64 * 4;
  for (int i = 0; i < 8; ++i) {
    OffloadStack::Group group;
    group.push_back(made(i, 1000, 64));
    stack_->push(std::move(group));
    EXPECT_EQ(device_.bytes_in_use(), bytes);
  }
  EXPECT_EQ(device_.peak_bytes(), 2 * bytes);
  stack_->clear();
  EXPECT_EQ(device_.bytes_in_use(), 0);
  OffloadStack::Group group;
  group.push_back(made(3, 10, 10));
  stack_->push(std::move(group));
  EXPECT_TRUE(same(read(stack_->pop()[0]), values_of(3, 100)));
}

/// The host goes on while the GPU is busy: neither way waits for it.
TEST_F(HostOffload, NothingWaitsOnTheHost) {
  sources_.reserve(1000);
  OffloadStack::Group first, second;
  first.push_back(made(1, 100, 64)), second.push_back(made(2, 100, 64));
  stack_->push(std::move(first));  // page-locked memory is made here, once
  (void)stack_->pop();
  device_.stream().synchronize();
  const auto begin = std::chrono::steady_clock::now();
  busy(1000);
  stack_->push(std::move(second));
  stack_->prefetch();
  const OffloadStack::Group back = stack_->pop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(700));
  EXPECT_TRUE(same(read(back[0]), values_of(2, 6400)));
}

}  // namespace
}  // namespace longspan
