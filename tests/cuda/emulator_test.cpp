// The emulator that stands in for a GPU: that it computes what a GPU would, and that it says what
// is wrong where a GPU would hang, or give garbage.
#include "emulator.hpp"

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "parallel/cuda/device.hpp"
#include "parallel/cuda/launch.hpp"
#include "parallel/error.hpp"

namespace longspan::cuda {
namespace {

std::string error_of_launch(void (*kernel)(float*), unsigned threads, float* memory) {
  CudaStream stream;
  try {
    launch(kernel, dim3(3), dim3(threads), 1024, stream, memory);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class Emulator : public testing::Test {
 protected:
  std::vector<float> values(const Buffer<float>& buffer) {
    std::vector<float> all(static_cast<std::size_t>(buffer.size()));
    device_.copy(all.data(), buffer.data(), all.size() * 4, device_.stream());
    return all;
  }
  CudaDevice device_{0};
  Buffer<float> memory_{device_, 1024};
};

/// Every block turns its threads' values around by way of shared memory.
__global__ void turn_around(float* memory) {
  __shared__ float line[96];
  float* const dynamic = dynamic_shared<float>();
  const unsigned i = threadIdx.x;
  if (!std::isnan(dynamic[i])) return;
  line[i] = static_cast<float>(i);
  dynamic[i] = static_cast<float>(blockIdx.x);
  __syncthreads();
  const unsigned other = blockDim.x - 1 - i;
  memory[blockIdx.x * blockDim.x + i] = line[other] + 1000.0f * dynamic[other];
}

TEST_F(Emulator, BarriersSharedMemoryAndIndices) {
  ASSERT_EQ(error_of_launch(turn_around, 96, memory_.data()), "");
  const auto all = values(memory_);
  for (std::size_t i = 0; i < 288; ++i)
    EXPECT_EQ(all[i], static_cast<float>(95 - i % 96 + 1000 * (i / 96))) << i;
}

__global__ void without_barrier(float* memory) {
  float* const line = dynamic_shared<float>();
  line[threadIdx.x] = 1.0f;
  memory[blockIdx.x * blockDim.x + threadIdx.x] = line[blockDim.x - 1 - threadIdx.x];
}

TEST_F(Emulator, AMissingBarrierShows) {
  ASSERT_EQ(error_of_launch(without_barrier, 64, memory_.data()), "");
  const auto all = values(memory_);
  int wrong = 0;
  for (std::size_t i = 0; i < 192; ++i) wrong += all[i] == 1.0f ? 0 : 1;
  EXPECT_GT(wrong, 0);
}

/// Right as long as threads run in rising order: a GPU promises nothing of the kind.
__global__ void reads_the_thread_before(float* memory) {
  float* const line = dynamic_shared<float>();
  line[threadIdx.x] = 1.0f;
  memory[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x == 0 ? 1.0f : line[threadIdx.x - 1];
}

TEST_F(Emulator, ThreadsDoNotAlwaysRunInRisingOrder) {
  ASSERT_EQ(error_of_launch(reads_the_thread_before, 64, memory_.data()), "");
  const auto all = values(memory_);
  int wrong = 0;
  for (std::size_t i = 0; i < 192; ++i) wrong += all[i] == 1.0f ? 0 : 1;
  EXPECT_GT(wrong, 0);
}

__global__ void barrier_of_half(float*) {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void shuffle_against_barrier(float* memory) {
  if (threadIdx.x == 7)
    __syncthreads();
  else
    memory[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0);
}
__global__ void two_operations(float* memory) {
  if (threadIdx.x % 2 == 0)
    memory[0] = __shfl_sync(0xffffffffu, 1.0f, 0);
  else
    memory[1] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
__global__ void mask_without_itself(float*) {
  __syncwarp(0x0000ffffu);
}
__global__ void mask_beyond_the_block(float*) {
  __syncwarp();
}

TEST_F(Emulator, ThreadsThatWaitForEverAreNamed) {
  const auto expect = [&](void (*kernel)(float*), unsigned threads, const char* text) {
    const std::string error = error_of_launch(kernel, threads, memory_.data());
    EXPECT_NE(error.find(text), std::string::npos) << error;
  };
  expect(barrier_of_half, 64,
         "thread (0,0,0) of block (0,0,0) waits in __syncthreads(), but thread (32,0,0) of block "
         "(0,0,0) has returned");
  expect(shuffle_against_barrier, 32,
         "waits in __shfl_sync of lanes 0xffffffff, but thread (7,0,0) of block (0,0,0) waits in "
         "__syncthreads()");
  expect(two_operations, 32, "but thread (1,0,0) of block (0,0,0) waits in __shfl_xor_sync");
  expect(mask_without_itself, 32, "calls __syncwarp with a mask that leaves itself out");
  expect(mask_beyond_the_block, 16, "but the block has only 16 threads");
  // And the next launch is as good as ever.
  EXPECT_EQ(error_of_launch(turn_around, 96, memory_.data()), "");
}

TEST_F(Emulator, ALaunchThatNoGpuTakesIsRefused) {
  EXPECT_NE(error_of_launch(turn_around, 2048, memory_.data()).find("no such launch"),
            std::string::npos);
}

__global__ void warp_operations(float* memory) {
  const unsigned lane = threadIdx.x % 32;
  const float mine = static_cast<float>(threadIdx.x);
  float sum = mine;
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  const float below = __shfl_up_sync(0xffffffffu, mine, 1);
  const float above = __shfl_down_sync(0xffffffffu, mine, 4, 8);
  const unsigned odd = __ballot_sync(0xffffffffu, lane % 2);
  const bool good = odd == 0xaaaaaaaau && __any_sync(0xffffffffu, lane == 3) &&
                    !__all_sync(0xffffffffu, lane == 3) &&
                    __reduce_max_sync(0xffffffffu, static_cast<int>(lane)) == 31 &&
                    __syncthreads_count(threadIdx.x < 40) == 40;
  const bool shuffled =
      below == (lane == 0 ? mine : mine - 1.0f) && above == (lane % 8 < 4 ? mine + 4.0f : mine);
  if (blockIdx.x == 0) memory[threadIdx.x] = good && shuffled ? sum : -1.0f;
}

TEST_F(Emulator, WarpOperations) {
  ASSERT_EQ(error_of_launch(warp_operations, 64, memory_.data()), "");
  const auto all = values(memory_);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(all[i], i < 32 ? 496.0f : 1520.0f) << i;
}

TEST_F(Emulator, Bfloat16RoundsToNearestEven) {
  const auto bits = [](float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); };
  EXPECT_EQ(bits(1.0f), 0x3f80);
  EXPECT_EQ(bits(__uint_as_float(0x3f808000u)), 0x3f80);  // a tie: to even
  EXPECT_EQ(bits(__uint_as_float(0x3f818000u)), 0x3f82);  // a tie: to even
  EXPECT_EQ(bits(__uint_as_float(0x3f808001u)), 0x3f81);
  EXPECT_EQ(bits(__uint_as_float(0x7f7fffffu)), 0x7f80);  // beyond the largest
  EXPECT_EQ(bits(std::nanf("")), 0x7fff);
  EXPECT_EQ(__bfloat162float(__ushort_as_bfloat16(0xc000)), -2.0f);
}

using EmulatorDeathTest = Emulator;

TEST_F(EmulatorDeathTest, HostCodeThatTouchesDeviceMemoryDies) {
  volatile float* const p = memory_.data();
  EXPECT_DEATH({ p[0] = 1.0f; }, "host code touches device memory at 0x");
}

__global__ void far_outside(float* memory) {
  memory[std::int64_t{1} << 31] = 0.0f;
}

TEST_F(EmulatorDeathTest, AKernelOutsideOfDeviceMemoryDies) {
  EXPECT_DEATH(error_of_launch(far_outside, 1, memory_.data()), "outside of device memory");
}

TEST_F(Emulator, ACallThatFailsSaysWhereAndWhy) {
  try {
    LONGSPAN_CUDA(cudaMemset(this, 0, 4));
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("CUDA: invalid argument (error 1) in cudaMemset(this, 0, 4) at "
                        "emulator_test.cpp:"),
              std::string::npos)
        << text;
  }
}

}  // namespace
}  // namespace longspan::cuda
