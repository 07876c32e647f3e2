// The host's memory: alignment, accounting, reuse, and what it costs the process.
#include "parallel/device.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "parallel/error.hpp"

namespace longspan {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::size_t address(const void* p) {
  return reinterpret_cast<std::size_t>(p);
}

std::size_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long total = 0, resident = 0;
  const int fields = file != nullptr ? std::fscanf(file, "%lu %lu", &total, &resident) : 0;
  if (file != nullptr) std::fclose(file);
  return fields == 2 ? resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

TEST(CpuDevice, BlocksAreAlignedAndDisjoint) {
  Device& device = cpu_device();
  const std::size_t sizes[] = {1,        63,           64,       65,           4097,
                               kMiB + 1, 4 * kMiB - 1, 4 * kMiB, 5 * kMiB + 3, 16 * kMiB};
  std::vector<unsigned char*> blocks;
  for (const std::size_t bytes : sizes) {
    blocks.push_back(static_cast<unsigned char*>(device.allocate(bytes)));
    EXPECT_EQ(address(blocks.back()) % (bytes >= 4 * kMiB ? 2 * kMiB : 64), 0u) << bytes;
    std::memset(blocks.back(), static_cast<int>(blocks.size()), bytes);
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i][0], i + 1);
    EXPECT_EQ(blocks[i][sizes[i] - 1], i + 1);
    device.release(blocks[i], sizes[i]);
  }
}

TEST(CpuDevice, CountsTheBytesAskedFor) {
  Device& device = cpu_device();
  const std::int64_t before = device.bytes_in_use();
  device.reset_peak();
  EXPECT_EQ(device.peak_bytes(), before);
  {
    const Buffer<float> x(device, 1001);
    EXPECT_EQ(device.bytes_in_use(), before + 4004);
    {
      const Buffer<float> y(device, 3, 5 * static_cast<std::int64_t>(kMiB));
      EXPECT_EQ(device.bytes_in_use(), before + 4004 + static_cast<std::int64_t>(60 * kMiB));
    }
    EXPECT_EQ(device.bytes_in_use(), before + 4004);
  }
  EXPECT_EQ(device.bytes_in_use(), before);
  EXPECT_EQ(device.peak_bytes(), before + 4004 + static_cast<std::int64_t>(60 * kMiB));
  device.reset_peak();
  EXPECT_EQ(device.peak_bytes(), before);
}

TEST(CpuDevice, NothingCostsNothing) {
  const std::int64_t before = cpu_device().bytes_in_use();
  const Buffer<float> nothing(cpu_device(), 0);
  EXPECT_TRUE(nothing.empty());
  EXPECT_EQ(cpu_device().bytes_in_use(), before);
}

TEST(CpuDevice, HandsFreedBlocksOutAgain) {
  Device& device = cpu_device();
  for (const std::size_t bytes : {std::size_t{5000}, 9 * kMiB}) {
    void* first = device.allocate(bytes);
    device.release(first, bytes);
    void* same = device.allocate(bytes);
    EXPECT_EQ(same, first);
    device.release(same, bytes);
    void* a_little_smaller = device.allocate(bytes - bytes / 16);
    EXPECT_EQ(a_little_smaller, first);
    device.release(a_little_smaller, bytes - bytes / 16);
    void* much_smaller = device.allocate(bytes / 2);  // would waste half of the block
    EXPECT_NE(much_smaller, first);
    device.release(much_smaller, bytes / 2);
  }
}

TEST(CpuDevice, ManySizesInTurnDoNotPileUp) {
  Device& device = cpu_device();
  const std::size_t before = resident_bytes();
  for (std::size_t mib = 20; mib < 60; mib += 4) {  // 380 MiB in all, never more than 56 at a time
    void* block = device.allocate(mib * kMiB);
    std::memset(block, 1, mib * kMiB);
    device.release(block, mib * kMiB);
  }
  EXPECT_LT(
      resident_bytes(),
      before + 130 * kMiB);  // the largest use so far, in this test or an earlier one, and slack
}

TEST(CpuDevice, SaysHowMuchWasMissing) {
  Device& device = cpu_device();
  const std::int64_t before = device.bytes_in_use();
  const Buffer<char> held(device, 1000);
  try {
    device.allocate(std::size_t{1} << 60);
    FAIL() << "allocated an exbibyte";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("1152921504606846976"), std::string::npos) << text;
    EXPECT_NE(text.find(std::to_string(before + 1000)), std::string::npos) << text;
  }
  EXPECT_EQ(device.bytes_in_use(), before + 1000);
}

TEST(CpuDevice, ThreadsShareIt) {
  Device& device = cpu_device();
  const std::int64_t before = device.bytes_in_use();
  std::vector<int> damaged(4, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&device, &damaged, t] {
      for (int i = 0; i < 500; ++i) {
        const Buffer<unsigned char> x(device, 100 + (i * 37 + t) % 5000);
        std::memset(x.data(), t + 1, static_cast<std::size_t>(x.size()));
        std::this_thread::yield();
        for (std::int64_t j = 0; j < x.size(); ++j) damaged[t] += x[j] != t + 1;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(damaged, std::vector<int>(4, 0));
  EXPECT_EQ(device.bytes_in_use(), before);
}

TEST(CpuDevice, CopiesAndFills) {
  Device& device = cpu_device();
  const std::int64_t count = 3 * static_cast<std::int64_t>(kMiB) + 5;
  const Buffer<float> x(device, count), y(device, count);
  for (std::int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(i % 1009), y[i] = -1;
  device.copy(y.data(), x.data(), static_cast<std::size_t>(count - 1) * 4, device.stream());
  device.fill_zero(x.data(), static_cast<std::size_t>(count - 1) * 4, device.stream());
  device.stream().synchronize();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < count - 1; ++i)
    wrong += y[i] != static_cast<float>(i % 1009) || x[i] != 0;
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(y[count - 1], -1);
  EXPECT_EQ(x[count - 1], static_cast<float>((count - 1) % 1009));
}

}  // namespace
}  // namespace longspan
