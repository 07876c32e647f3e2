#include "model/decoder.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "model/sampling.hpp"
#include "parallel/error.hpp"
#include "support/tiny_model.hpp"

namespace longspan::model {
namespace {

using testing_support::TinyBatch;

class DecoderVariants : public testing::TestWithParam<testing_support::Variant> {};

// The cache must give what the whole forward pass gives: after every prefix, however the tokens
// arrived.
TEST_P(DecoderVariants, EqualsTeacherForcing) {
  const auto& v = GetParam();
  const std::int64_t length = 24, vocabulary = v.config.vocabulary;
  Transformer model(v.config, v.attention, {},
                    shard_sequence(length, SequenceLayout::kContiguous, nullptr), cpu_backend());
  model.parameters().initialize(3);
  for (float& w : model.parameters().weights()) w *= 6.0f;
  TinyBatch data(1, length, vocabulary, 5);
  const MicroBatch batch = data.slice(0, 1, model.shards().mine());
  const Buffer<float> expected = model.logits(batch);

  Decoder decoder(model, v.attention, length);
  std::vector<std::int32_t> next(batch.inputs_BT.begin(), batch.inputs_BT.begin() + 7);
  for (std::int64_t t = 6; t < length; ++t) {
    const std::vector<float> logits = decoder.append(next);
    const float* row = expected.view().row(t);
    for (std::int64_t i = 0; i < vocabulary; ++i)
      ASSERT_NEAR(logits[static_cast<std::size_t>(i)], row[i], 2e-4) << t;
    EXPECT_EQ(sample_token(logits, vocabulary, {.temperature = 0.0}, 0),
              std::max_element(row, row + vocabulary) - row);
    if (t + 1 < length) next = {batch.inputs_BT[t + 1]};
  }
  EXPECT_THROW(decoder.append({1}), Error);
}

INSTANTIATE_TEST_SUITE_P(Causal, DecoderVariants, testing::ValuesIn([] {
                           auto all = testing_support::variants();
                           std::erase_if(all, [](const auto& v) {
                             return v.attention.mask == MaskKind::kFull || v.documents ||
                                    v.config.dropout > 0;
                           });
                           return all;
                         }()),
                         [](const auto& info) { return info.param.name; });

TEST(Sampling, FollowsTheProbabilities) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  std::map<int, int> counts;
  for (std::uint64_t draw = 0; draw < 20000; ++draw) ++counts[sample_token(logits, 3, {}, draw)];
  EXPECT_NEAR(counts[0] / 20000.0, 0.5, 0.02);
  EXPECT_NEAR(counts[1] / 20000.0, 0.3, 0.02);
  EXPECT_NEAR(counts[2] / 20000.0, 0.2, 0.02);
}

TEST(Sampling, TopKTopPTemperatureAndVocabulary) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f), 100.0f};
  for (std::uint64_t draw = 0; draw < 500; ++draw) {
    EXPECT_EQ(sample_token(logits, 3, {.temperature = 0.0}, draw), 0);
    EXPECT_LE(sample_token(logits, 3, {.top_k = 2}, draw), 1);
    EXPECT_EQ(sample_token(logits, 3, {.top_p = 0.4}, draw), 0);
    EXPECT_LE(sample_token(logits, 3, {.top_p = 0.75}, draw), 1);
    EXPECT_EQ(sample_token(logits, 3, {.seed = 4}, draw),
              sample_token(logits, 3, {.seed = 4}, draw));
  }
}

}  // namespace
}  // namespace longspan::model
