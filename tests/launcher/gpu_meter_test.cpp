// Energy per token, from the driver's counter: of a window, not of the whole run.
#include "launcher/gpu_meter.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include <chrono>
#include <thread>

namespace longspan::launcher {
namespace {

/// The fake library, under the name by which it will be asked for.
class GpuMeterTest : public testing::Test {
 protected:
  GpuMeterTest()
      : library_(::dlopen(LONGSPAN_BINARY_DIR "/plugins/nvml/libnvidia-ml.so.1", RTLD_NOW)) {}
  ~GpuMeterTest() override { ::unsetenv("FAKE_NVML_MISSING"); }
  void* library_;  // open from here on: dlopen("libnvidia-ml.so.1") finds it by its name
};

TEST_F(GpuMeterTest, EnergyIsOfTheWindow) {
  ASSERT_NE(library_, nullptr);
  const Communicator self = Communicator::self();
  GpuMeter meter("0000:01:00.0", self);
  EXPECT_FALSE(meter.read(1000).joules_per_token);  // the first step only begins the window
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(meter.read(1100).joules_per_token);  // too short for the counter
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  const GpuReading reading = meter.read(2000);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(reading.joules_per_token);
  EXPECT_GE(*reading.joules_per_token, 0.5 - 0.01);  // 500 W for 1 s, 1000 tokens
  EXPECT_LE(*reading.joules_per_token, 0.5 * passed.count() + 0.01);
  EXPECT_EQ(reading.power_watts, 500.0);
  EXPECT_EQ(reading.utilisation, 0.87);
  EXPECT_NE(meter.summary().find(" mJ/token ("), std::string::npos) << meter.summary();
}

TEST_F(GpuMeterTest, AnotherGpuIsNotTakenForThisOne) {
  const Communicator self = Communicator::self();
  GpuMeter meter("0000:99:00.0", self);
  const GpuReading reading = meter.read(1);
  EXPECT_FALSE(reading.power_watts || reading.utilisation || reading.memory_bytes);
  EXPECT_NE(meter.summary().find("n/a (nvmlDeviceGetHandleByPciBusId: "), std::string::npos)
      << meter.summary();
}

TEST_F(GpuMeterTest, WhatIsNotToldIsNone) {
  ::setenv("FAKE_NVML_MISSING", "energy", 1);
  const Communicator self = Communicator::self();
  GpuMeter meter("0000:01:00.0", self);
  meter.read(1);
  EXPECT_FALSE(meter.read(1000).joules_per_token);
  EXPECT_NE(meter.summary().find("500 W, n/a (n/a)"), std::string::npos) << meter.summary();
}

}  // namespace
}  // namespace longspan::launcher
