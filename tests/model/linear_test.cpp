// Gradients of a layer whose dy is rounded already against those of dy itself.
#include "model/linear.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "parallel/random.hpp"

namespace longspan::model {
namespace {

Buffer<float> random_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t key) {
  Buffer<float> x(cpu_device(), rows, cols);
  for (std::int64_t i = 0; i < x.size(); ++i)
    x[i] = uniform_from(static_cast<std::uint32_t>(derive_key(key, std::uint64_t(i)))) - 0.5f;
  return x;
}

std::vector<float> copy_of(View<const float> x) {
  return {x.data(), x.data() + x.size()};
}

/// One block of dy, blocks of rows, of outputs (whose rows then have gaps), and of both.
TEST(Linear, RoundedGradientsGiveTheSameBits) {
  const Backend backend = cpu_backend();
  for (const auto& [rows, outputs] :
       {std::pair<std::int64_t, std::int64_t>{50, 70}, {4101, 64}, {40, 4170}, {4100, 4100}}) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << outputs << " outputs");
    const std::int64_t inputs = 48;
    ParameterStore store;
    Linear layer(store, {{"layer", TensorShards().part_of(outputs)}},
                 TensorShards().part_of(inputs), false, 0.5f, true, backend);
    store.allocate(backend.device);
    store.initialize(3);
    const Buffer<float> x = random_matrix(rows, inputs, 1), dy = random_matrix(rows, outputs, 2),
                        dx(backend.device, rows, inputs);
    Buffer<std::uint16_t> bits(backend.device, rows, outputs);
    backend.kernels.to_bf16(rows, outputs, dy.data(), outputs, bits.data(), backend.stream);
    const View<float> gradient = store.gradient(0);
    const auto clear = [&] {
      std::memset(gradient.data(), 0, static_cast<std::size_t>(gradient.size()) * sizeof(float));
      std::memset(dx.data(), 0x7F, static_cast<std::size_t>(dx.size()) * sizeof(float));
    };
    clear();
    layer.backward(dy, x, dx);
    const std::vector<float> expected_dx = copy_of(dx), expected = copy_of(gradient);
    clear();
    layer.backward_rounded(View<const std::uint16_t>(bits.data(), rows, outputs), x, dx);
    EXPECT_TRUE(expected_dx == copy_of(dx));
    EXPECT_TRUE(expected == copy_of(gradient));
    EXPECT_NE(expected.front(), 0.0f);
  }
}

}  // namespace
}  // namespace longspan::model
