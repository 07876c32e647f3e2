/// The guarded device of the other tests guards: who touches its memory without a copy is named.
#include "support/guarded_device.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "parallel/error.hpp"
#include "parallel/host_copy.hpp"

namespace longspan::testing_support {
namespace {

TEST(GuardedDeviceDeathTest, NamesTheTestThatTouchesItsMemory) {
  GuardedDevice& device = guarded_device();
  const Buffer<float> buffer(device, 100);
  EXPECT_DEATH(buffer[3] = 1.0f,
               "GuardedDeviceDeathTest.NamesTheTestThatTouchesItsMemory: host code touches");
}

TEST(GuardedDevice, CopiesReachWhatTheHostCannot) {
  GuardedDevice& device = guarded_device();
  const launcher::Compute compute = guarded_compute();
  Stream& stream = compute.backend.stream;
  const Buffer<float> x(device, 2, 3), y(device, 2, 3);
  EXPECT_EQ(device.bytes_in_use(), 48);
  write_from_host(device, stream, x.view(), [](View<float> to) {
    for (std::int64_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(i);
  });
  device.fill_zero(y.data(), 24, stream);
  compute.backend.kernels.add(6, x.data(), y.data(), stream);
  device.copy_rows(y.data(), 12, x.data() + 1, 12, 4, 2, stream);  // a column
  const OnHost<float> result(device, stream, y.view());
  EXPECT_EQ(std::vector<float>(result.view().begin(), result.view().end()),
            (std::vector<float>{1, 1, 2, 4, 4, 5}));
  const std::vector<std::int32_t> numbers = {5, 6};
  const Uploaded<std::int32_t> uploaded(device, stream, numbers);
  EXPECT_TRUE(device.owns(uploaded.data()));
}

TEST(GuardedDevice, ItsKernelsRefuseMemoryOfTheHost) {
  const launcher::Compute compute = guarded_compute();
  const Buffer<float> table(guarded_device(), 10, 4), rows(guarded_device(), 2, 4);
  const std::vector<std::int32_t> ids = {1, 2};
  model::EmbeddingForwardArgs args;
  args.rows = 2, args.width = 4, args.ids = ids.data(), args.table = table.data();
  args.y = rows.data();
  EXPECT_THROW(compute.backend.kernels.embedding_forward(args, compute.backend.stream), Error);
}

TEST(Uploaded, IsAViewWhereTheHostReachesTheMemory) {
  std::vector<std::int32_t> numbers = {7, 8, 9};
  const std::int32_t* const at = numbers.data();
  Device& cpu = cpu_device();
  const std::int64_t before = cpu.bytes_in_use();
  const Uploaded<std::int32_t> view(cpu, cpu.stream(), View<const std::int32_t>(at, 3));
  const Uploaded<std::int32_t> taken(cpu, cpu.stream(), std::move(numbers));
  EXPECT_EQ(view.data(), at);
  EXPECT_EQ(taken.data(), at);
  EXPECT_EQ(cpu.bytes_in_use(), before);
}

}  // namespace
}  // namespace longspan::testing_support
