// The GPU as a Device, on the emulator: memory, copies in pieces, events.
#include "parallel/cuda/device.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <numeric>
#include <thread>
#include <vector>

#include "parallel/cuda/arena.hpp"
#include "parallel/error.hpp"

namespace longspan::cuda {
namespace {

std::vector<std::uint32_t> counting(std::size_t count) {
  std::vector<std::uint32_t> values(count);
  std::iota(values.begin(), values.end(), 1u);
  return values;
}

TEST(CudaDevice, CopiesAnySizeBothWaysAndInside) {
  CudaDevice device(0);
  // The largest goes through the staging buffers in three pieces, the last a short one.
  for (const std::size_t count : {std::size_t{1}, std::size_t{1000}, std::size_t{2500000}}) {
    const auto values = counting(count);
    Buffer<std::uint32_t> there(device, static_cast<std::int64_t>(count));
    Buffer<std::uint32_t> copied(device, static_cast<std::int64_t>(count));
    std::vector<std::uint32_t> back(count);
    device.copy(there.data(), values.data(), count * 4, device.stream());
    device.copy(copied.data(), there.data(), count * 4, device.stream());
    device.fill_zero(there.data(), count * 4, device.stream());
    device.copy(back.data(), copied.data(), count * 4, device.stream());
    EXPECT_EQ(back, values);
    device.copy(back.data(), there.data(), count * 4, device.copy_stream());
    EXPECT_EQ(back, std::vector<std::uint32_t>(count, 0u));
  }
}

TEST(CudaDevice, CopiesRowsWithGaps) {
  CudaDevice device(0);
  const auto values = counting(40);
  Buffer<std::uint32_t> there(device, 40);
  device.fill_zero(there.data(), 160, device.stream());
  // 4 rows of 5, 10 apart, become rows 8 apart.
  device.copy_rows(there.data(), 32, values.data(), 40, 20, 4, device.stream());
  std::vector<std::uint32_t> back(40);
  device.copy(back.data(), there.data(), 160, device.stream());
  for (std::size_t row = 0; row < 4; ++row)
    for (std::size_t i = 0; i < 8; ++i)
      EXPECT_EQ(back[row * 8 + i], i < 5 ? values[row * 10 + i] : 0u) << row << " " << i;
}

TEST(CudaDevice, ThreadsMayCopyAtOnce) {
  CudaDevice device(0);
  const std::size_t count = 1500000;
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 1);
  for (std::size_t t = 0; t < wrong.size(); ++t)
    threads.emplace_back([&, t] {
      auto values = counting(count);
      for (auto& v : values) v += static_cast<std::uint32_t>(t) << 24;
      Buffer<std::uint32_t> there(device, static_cast<std::int64_t>(count));
      std::vector<std::uint32_t> back(count);
      device.copy(there.data(), values.data(), count * 4, device.stream());
      device.copy(back.data(), there.data(), count * 4, device.stream());
      wrong[t] = back == values ? 0 : 1;
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(CudaDevice, CountsBytesAndAsksTheDriverOnlyOnce) {
  CudaDevice device(0);
  const auto step = [&] {
    Buffer<float> a(device, 1000), b(device, 300000);
    Buffer<float> c(device, 7);
    EXPECT_EQ(device.bytes_in_use(), (1000 + 300000 + 7) * 4);
  };
  step();
  const std::int64_t asked = device.system_allocations();
  EXPECT_GT(asked, 0);
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(device.system_allocations(), asked);
  EXPECT_EQ(device.bytes_in_use(), 0);
  EXPECT_EQ(device.peak_bytes(), (1000 + 300000 + 7) * 4);
  device.reset_peak();
  EXPECT_EQ(device.peak_bytes(), 0);
}

TEST(CudaDevice, WhatOperationsNeedIsCountedApart) {
  CudaDevice device(0);
  ASSERT_TRUE(device.reserve(1 << 20));
  {
    Buffer<float> array(device, 1000);
    Buffer<float> scratch(device.scratch(), 300);
    EXPECT_EQ(device.bytes_in_use(), 4000);
    EXPECT_EQ(device.arena().bytes_in_use(), 5200);
  }
  EXPECT_EQ(device.peak_bytes(), 4000);
  EXPECT_EQ(device.scratch_peak_bytes(), 1200);
  EXPECT_EQ(device.arena().peak_bytes(), 5200);
  EXPECT_EQ(device.arena().used_bytes(), 4096 + 1280);
  EXPECT_EQ(device.system_allocations(), 1);
  device.reset_peak();
  EXPECT_EQ(device.scratch_peak_bytes() + device.arena().used_bytes(), 0);
}

TEST(CudaDevice, FreshAndReusedMemoryHoldsNan) {
  CudaDevice device(0);
  std::vector<float> back(100);
  {
    Buffer<float> first(device, 100);
    device.copy(back.data(), first.data(), 400, device.stream());
    for (const float x : back) EXPECT_TRUE(std::isnan(x));
    device.fill_zero(first.data(), 400, device.stream());
  }
  Buffer<float> second(device, 100);
  device.copy(back.data(), second.data(), 400, device.stream());
  for (const float x : back) EXPECT_TRUE(std::isnan(x));
}

TEST(CudaDevice, NoMemoryLeftIsOneClearError) {
  CudaDevice device(0);
  Buffer<float> some(device, 1000);
  try {
    Buffer<char> all(device, std::int64_t{1} << 40);
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("no memory for 1099511627776 bytes on GPU 0 (CUDA emulator): 4000 bytes "
                        "are in use here"),
              std::string::npos)
        << text;
    EXPECT_EQ(text.find('\n'), std::string::npos);
  }
}

TEST(Event, OrdersStreamsAndMeasures) {
  CudaDevice device(0);
  Event begin(true), end(true);
  begin.record(device.stream());
  begin.make_wait(device.copy_stream());
  end.record(device.copy_stream());
  end.synchronize();
  EXPECT_TRUE(end.reached());
  EXPECT_GE(begin.seconds_until(end), 0.0);
}

/// A system of `left` bytes that counts what it gave.
struct Bank {
  std::size_t left = 0;
  std::map<void*, std::size_t> given;
  Arena::System system(std::size_t step) {
    return {[this](std::size_t bytes) -> void* {
              if (bytes > left) return nullptr;
              left -= bytes;
              void* memory = std::aligned_alloc(Arena::kAlignment, bytes);
              given.emplace(memory, bytes);
              return memory;
            },
            [this](void* memory) {
              left += given.at(memory);
              given.erase(memory);
              std::free(memory);
            },
            step};
  }
};

TEST(Arena, NeighboursJoinAgainInAnyOrder) {
  Bank bank{1 << 20, {}};
  Arena arena(bank.system(1 << 16));
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) blocks.push_back(arena.allocate(1000));
  EXPECT_EQ(arena.system_allocations(), 1);
  // 64 blocks of 1024 fill the piece; only joined do they hold it as one again.
  for (int i = 0; i < 64; ++i) arena.release(blocks[static_cast<std::size_t>(i * 37 % 64)], 1000);
  void* whole = arena.allocate(1 << 16);
  EXPECT_NE(whole, nullptr);
  EXPECT_EQ(arena.system_allocations(), 1);
  arena.release(whole, 1 << 16);
}

TEST(Arena, GivesUnusedPiecesBackBeforeItGivesUp) {
  Bank bank{100 * 1024, {}};
  Arena arena(bank.system(16 * 1024));
  void* small = arena.allocate(60 * 1024);
  arena.release(small, 60 * 1024);
  void* large = arena.allocate(90 * 1024);
  ASSERT_NE(large, nullptr);
  EXPECT_EQ(arena.held_bytes(), 90 * 1024);
  EXPECT_EQ(arena.allocate(20 * 1024), nullptr);
  arena.release(large, 90 * 1024);
  EXPECT_EQ(arena.bytes_in_use(), 0);
}

TEST(Arena, GapsCountAsUsedUntilThePeakIsReset) {
  Bank bank{1 << 20, {}};
  Arena arena(bank.system(1 << 12));
  ASSERT_TRUE(arena.reserve(1 << 16));
  void* first = arena.allocate(1000);
  void* second = arena.allocate(1000);
  arena.release(first, 1000);
  void* large = arena.allocate(2000);  // the gap is too small for it
  EXPECT_EQ(arena.peak_bytes(), 3000);
  EXPECT_EQ(arena.used_bytes(), 1024 + 1024 + 2048);
  arena.release(large, 2000);
  arena.reset_peak();
  EXPECT_EQ(arena.used_bytes(), 1024 + 1024);
  arena.release(second, 1000);
}

TEST(Arena, ReservedBytesAreHandedOut) {
  Bank bank{1 << 20, {}};
  Arena arena(bank.system(1 << 12));
  EXPECT_TRUE(arena.reserve(500000));
  EXPECT_FALSE(arena.reserve(1 << 20));
  for (int i = 0; i < 100; ++i) EXPECT_NE(arena.allocate(4096), nullptr);
  EXPECT_EQ(arena.system_allocations(), 1);
}

}  // namespace
}  // namespace longspan::cuda
