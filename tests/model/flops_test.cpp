// timeout: 120
#include "model/flops.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <array>
#include <vector>

#include "support/tiny_model.hpp"

namespace longspan::model {
namespace {

TEST(Flops, PairsMatchACount) {
  for (std::int64_t n : {1, 7, 64})
    for (std::int64_t window : {0, 1, 5, 64, 100})
      for (MaskKind mask : {MaskKind::kCausal, MaskKind::kFull}) {
        double count = 0;
        for (std::int64_t i = 0; i < n; ++i)
          for (std::int64_t j = 0; j < n; ++j) {
            const bool near = window == 0 || std::abs(i - j) < window;
            count += near && (mask == MaskKind::kFull || j <= i);
          }
        EXPECT_EQ(attention_pairs({mask, window}, n), count) << n << " window " << window;
        std::vector<std::int32_t> positions;
        for (std::int64_t i = 0; i < n; ++i) positions.push_back(static_cast<std::int32_t>(i));
        AttentionShape shape;
        shape.batch = 1, shape.queries = shape.keys = n;
        shape.query_positions = shape.key_positions = positions.data();
        shape.mask = {mask == MaskKind::kCausal, window};
        EXPECT_EQ(visible_pairs(shape), static_cast<std::int64_t>(count));
      }
}

TEST(Flops, Gpt2Has124MillionParameters) {
  ModelConfig gpt2;
  gpt2.layers = 12, gpt2.width = 768, gpt2.heads = gpt2.kv_heads = 12, gpt2.head_size = 64,
  gpt2.mlp_width = 3072;
  gpt2.mlp = MlpKind::kGelu, gpt2.norm = NormKind::kLayerNorm,
  gpt2.position = PositionKind::kLearned;
  gpt2.bias = true, gpt2.vocabulary = 50257, gpt2.max_positions = 1024;
  EXPECT_EQ(parameter_count(gpt2), 124439808);
}

TEST(Flops, ParameterCountIsWhatTheModelHas) {
  for (const auto& v : testing_support::variants()) {
    Transformer model(v.config, v.attention, {},
                      shard_sequence(16, SequenceLayout::kContiguous, nullptr), cpu_backend());
    EXPECT_EQ(parameter_count(v.config), model.parameters().count()) << v.name;
  }
}

// The prediction is what a step really allocates, for every keep mode.
TEST(Flops, MemoryEstimateIsWithinFivePercentOfTheAllocator) {
  omp_set_num_threads(2);  // the products of bfloat16 numbers need room per thread
  for (const auto& v : testing_support::variants()) {
    if (v.documents) continue;
    auto config = v.config;
    config.layers = 4, config.max_positions = 768;
    // Keep mode, precision, and an MLP in chunks or in one piece.
    for (int bits = 0; bits < 12; ++bits) {
      MemoryConfig memory;
      memory.keep = std::array{Keep::kAll, Keep::kAttention, Keep::kBlock}[bits % 3];
      memory.loss_chunk = 256, memory.mlp_chunk = bits / 3 % 2 == 0 ? 200 : 0;
      config.precision = bits < 6 ? Precision::kFp32 : Precision::kBf16;
      const std::int64_t before = cpu_device().bytes_in_use();
      Transformer model(config, v.attention, memory,
                        shard_sequence(768, SequenceLayout::kContiguous, nullptr), cpu_backend());
      model.parameters().initialize(1);
      testing_support::TinyBatch data(2, 768, config.vocabulary, 1);
      const MicroBatch batch = data.slice(0, 2, model.shards().mine());
      cpu_device().reset_peak();
      model.train(batch, 1.0f);
      const double measured = static_cast<double>(cpu_device().peak_bytes() - before);
      const MemoryEstimate estimate = memory_estimate(config, memory, {2, 768});
      // No optimizer here: weights and gradients only.
      const double predicted = static_cast<double>(estimate.total() - 8 * parameter_count(config));
      EXPECT_NEAR(measured / predicted, 1.0, 0.05)
          << v.name << " keep " << static_cast<int>(memory.keep) << " mlp-chunk "
          << memory.mlp_chunk << (config.precision == Precision::kBf16 ? " bf16" : " fp32");
    }
  }
}

TEST(Flops, WhatIsComputedAgainByHand) {
  ModelConfig m;
  m.layers = 3, m.width = 8, m.heads = m.kv_heads = 2, m.head_size = 4, m.mlp_width = 32;
  m.mlp = MlpKind::kGelu;
  const ActivationPlan plan{{Keep::kAll, Keep::kAttention, Keep::kBlock}};
  // A layer's q, k, v, output and the MLP's first product, twice; of one layer also 4 x 8 channels
  // for each of the 10 causal pairs of a sequence of 4. Two sequences.
  const double products = 2.0 * (4 * 8 * 8 + 8 * 32) * (2 * 4);
  EXPECT_EQ(recomputed_flops(m, {}, plan, 2, 4), 2 * products + 2 * 4.0 * 8 * 10);
}

}  // namespace
}  // namespace longspan::model
