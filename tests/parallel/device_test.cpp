// The host's memory: alignment, accounting, reuse, and what it costs the process.
#include "parallel/device.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/error.hpp"
#include "parallel/host_arena.hpp"

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

const std::size_t resident_at_start = resident_bytes();

TEST(CpuDevice, BlocksAreAlignedAndDisjoint) {
  Device& device = cpu_device();
  const std::size_t sizes[] = {1,        63,           64,       65,           4097,
                               kMiB + 1, 4 * kMiB - 1, 4 * kMiB, 5 * kMiB + 3, 16 * kMiB};
  std::vector<unsigned char*> blocks;
  for (const std::size_t bytes : sizes) {
    blocks.push_back(static_cast<unsigned char*>(device.allocate(bytes)));
    EXPECT_EQ(address(blocks.back()) % (bytes >= 4 * kMiB ? 4096 : 64), 0u) << bytes;
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
  }
  void* first = device.allocate(5000);
  device.release(first, 5000);
  void* much_smaller = device.allocate(2500);  // would waste half of the block
  EXPECT_NE(much_smaller, first);
  device.release(much_smaller, 2500);
}

TEST(CpuDevice, LargeBlocksAreCutAndJoined) {
  Device& device = cpu_device();
  constexpr std::size_t kThird = 5 * kMiB;
  auto* whole = static_cast<char*>(device.allocate(3 * kThird));
  device.release(whole, 3 * kThird);
  char* part[3];
  for (char*& p : part) p = static_cast<char*>(device.allocate(kThird));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(part[i], whole + static_cast<std::size_t>(i) * kThird);
  // In this order each way of finding free neighbours is taken: none, above, both.
  device.release(part[0], kThird);
  device.release(part[2], kThird);
  device.release(part[1], kThird);
  EXPECT_EQ(device.allocate(3 * kThird), whole);
  device.release(whole, 3 * kThird);
}

/// Blocks of every size come and go without an order; the process keeps what they need at once.
TEST(CpuDevice, NoOrderOfSizesPilesUp) {
  Device& device = cpu_device();
  const std::size_t before = resident_bytes();
  std::vector<std::pair<unsigned char*, std::size_t>> blocks;
  std::size_t in_use = 0, most = 0, damaged = 0;
  std::uint32_t random = 1;
  for (int i = 0; i < 400; ++i) {
    random = random * 1664525u + 1013904223u;
    if (in_use > 96 * kMiB || (!blocks.empty() && random % 3 == 0)) {
      const std::size_t which = random / 3 % blocks.size();
      const auto [block, bytes] = blocks[which];
      for (std::size_t at = 0; at < bytes; at += 4096)
        damaged += block[at] != static_cast<unsigned char>(bytes % 251);
      device.release(block, bytes);
      in_use -= bytes;
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(which));
    } else {
      const std::size_t bytes = 4 * kMiB + random % (12 * kMiB);
      auto* block = static_cast<unsigned char*>(device.allocate(bytes));
      std::memset(block, static_cast<int>(bytes % 251), bytes);
      blocks.emplace_back(block, bytes);
      in_use += bytes;
      most = std::max(most, in_use);
    }
  }
  EXPECT_EQ(damaged, 0u);
  EXPECT_LT(resident_bytes(), before + most + most / 8 + 8 * kMiB);
  for (const auto& [block, bytes] : blocks) device.release(block, bytes);
}

/// Gaps that no block fits into do not stay in the process.
TEST(HostArena, GivesBackWhatLiesBetweenBlocks) {
  constexpr std::size_t kSmall = 4 * kMiB, kCount = 20, kHeld = 8 * kMiB;
  HostArena arena;
  const std::size_t before = resident_bytes();
  std::vector<char*> blocks;
  for (std::size_t i = 0; i < kCount; ++i) {
    blocks.push_back(static_cast<char*>(arena.allocate(kSmall)));
    std::memset(blocks.back(), 1, kSmall);
  }
  EXPECT_EQ(arena.held_bytes(), kCount * kSmall);
  for (std::size_t i = 0; i < kCount; i += 2) arena.release(blocks[i], kSmall);
  EXPECT_EQ(arena.held_bytes(), kCount * kSmall);
  arena.shrink(kCount * kSmall - kHeld);
  EXPECT_EQ(arena.held_bytes(), kCount * kSmall - kHeld);
  arena.shrink(0);
  EXPECT_EQ(arena.held_bytes(), kCount * kSmall / 2);
  EXPECT_LT(resident_bytes(), before + kCount * kSmall / 2 + 4 * kMiB);
  for (std::size_t i = 1; i < kCount; i += 2) {
    EXPECT_EQ(blocks[i][0], 1);
    EXPECT_EQ(blocks[i][kSmall - 1], 1);
  }
  // What was given back can be had again, and is counted again.
  EXPECT_EQ(arena.allocate(kSmall), blocks[0]);
  EXPECT_EQ(arena.held_bytes(), (kCount / 2 + 1) * kSmall);
}

/// The same through the device, which keeps what it needed at most and a sixteenth.
TEST(CpuDevice, GapsAreGivenBack) {
  Device& device = cpu_device();
  constexpr std::size_t kSmall = 4 * kMiB, kLarge = 64 * kMiB, kCount = 40;
  std::vector<void*> blocks;
  for (std::size_t i = 0; i < kCount; ++i) {
    blocks.push_back(device.allocate(kSmall));
    std::memset(blocks.back(), 1, kSmall);
  }
  for (std::size_t i = 0; i < kCount; i += 2) device.release(blocks[i], kSmall);
  void* large = device.allocate(kLarge);
  std::memset(large, 2, kLarge);
  // Half of the small ones and the large one are less than all of the small ones were.
  EXPECT_LT(resident_bytes(), resident_at_start + kCount * kSmall * 17 / 16 + 16 * kMiB);
  for (std::size_t i = 1; i < kCount; i += 2) device.release(blocks[i], kSmall);
  device.release(large, kLarge);
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
