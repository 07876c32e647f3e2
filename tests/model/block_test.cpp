#include "model/block.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel/random.hpp"

namespace longspan::model {
namespace {

constexpr std::int64_t kTokens = 16, kWidth = 32;

ModelConfig small() {
  ModelConfig config;
  config.layers = 2, config.width = kWidth, config.heads = 2, config.kv_heads = 2;
  config.head_size = 16, config.mlp_width = 64, config.bias = true, config.dropout = 0.5f;
  config.mlp = MlpKind::kGelu, config.position = PositionKind::kNone, config.vocabulary = 64;
  return config;
}

/// One block with parameters of its own, and a sequence to run it on.
struct Fixture {
  ModelConfig config;
  ParameterStore store;
  Block block;
  SequenceShards shards = shard_sequence(kTokens, SequenceLayout::kContiguous, nullptr);
  std::vector<std::int32_t> tokens = std::vector<std::int32_t>(kTokens, 0);
  std::vector<std::int64_t> numbers = {7};
  MicroBatch batch;

  explicit Fixture(const ModelConfig& c, std::int64_t index = 0)
      : config(c), block(store, index, config, {}, 0, cpu_backend()) {
    store.allocate(cpu_backend().device);
    store.initialize(5);
    batch.sequences = 1;
    batch.inputs_BT = batch.targets_BT = {tokens.data(), kTokens};
    batch.sequence_numbers_B = {numbers.data(), 1};
    batch.dropout_key = 99;
  }
  View<float> weight(const std::string& end) {
    const auto& all = store.parameters();
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Parameter& p) { return p.name.ends_with(end); });
    return store.weight(static_cast<std::size_t>(found - all.begin()));
  }
  std::vector<float> forward(View<const float> x) {
    const PassContext pass{shards, batch, true, {}};
    Buffer<float> y(cpu_backend().device, kTokens, kWidth);
    Block::Saved saved;
    block.forward(x, y, saved, Keep::kAll, pass, nullptr);
    return {y.data(), y.data() + y.size()};
  }
};

/// With projections that only add their bias, y shows the masks themselves: 2 where a branch is
/// kept and 0 where it is dropped, at half of the places each.
std::vector<float> masks_of(std::int64_t index, float attention_bias, float mlp_bias) {
  Fixture f(small(), index);
  for (const char* matrix : {"attention.output.weight", "mlp.down.weight"})
    for (float& w : f.weight(matrix)) w = 0;
  for (float& b : f.weight("attention.output.bias")) b = attention_bias;
  for (float& b : f.weight("mlp.down.bias")) b = mlp_bias;
  const std::vector<float> zero(kTokens * kWidth, 0.0f);
  return f.forward({zero.data(), kTokens, kWidth});
}

int differences(const std::vector<float>& a, const std::vector<float>& b) {
  int count = 0;
  for (std::size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
  return count;
}

TEST(Block, EverySiteOfEveryBlockHasADropoutMaskOfItsOwn) {
  const std::vector<std::vector<float>> masks = {masks_of(0, 1, 0), masks_of(0, 0, 1),
                                                 masks_of(1, 1, 0), masks_of(1, 0, 1)};
  const int places = kTokens * kWidth;
  for (std::size_t a = 0; a < masks.size(); ++a) {
    const auto kept = std::count(masks[a].begin(), masks[a].end(), 2.0f);
    EXPECT_NEAR(static_cast<double>(kept) / places, 0.5, 0.1);
    for (std::size_t b = 0; b < a; ++b)
      EXPECT_NEAR(static_cast<double>(differences(masks[a], masks[b])) / places, 0.5, 0.1)
          << "masks " << a << " and " << b;
  }
  EXPECT_EQ(masks_of(0, 1, 0), masks[0]);
}

/// What attention reads with model.precision=bf16 are bfloat16 numbers, as they are kept.
TEST(Block, QueriesKeysAndValuesAreRoundedToBfloat16) {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    ModelConfig config = small();
    config.dropout = 0.0f, config.precision = precision;
    Fixture f(config);
    if (precision == Precision::kBf16) {
      f.store.keep_rounded(0, cpu_backend());
      f.store.begin_pass();
      f.store.need_weights(0);
    }
    std::vector<float> x(kTokens * kWidth);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal_at(3, i);
    // With one query and one key, attention's output is the value itself.
    f.shards = shard_sequence(1, SequenceLayout::kContiguous, nullptr);
    const PassContext pass{f.shards, f.batch, true, {}};
    Buffer<float> y(cpu_backend().device, 1, kWidth);
    Block::Saved saved;
    f.block.forward({x.data(), 1, kWidth}, y, saved, Keep::kAttention, pass, nullptr);
    Buffer<float> rounded(cpu_backend().device, 1, saved.attention.output_NHK.size());
    std::copy_n(saved.attention.output_NHK.data(), rounded.size(), rounded.data());
    cpu_backend().kernels.round_to_bf16(rounded.size(), rounded.data(), cpu_backend().stream);
    const bool same = std::equal(rounded.data(), rounded.data() + rounded.size(),
                                 saved.attention.output_NHK.data());
    EXPECT_EQ(same, precision == Precision::kBf16);
  }
}

}  // namespace
}  // namespace longspan::model
