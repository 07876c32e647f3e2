// label: quick
#include "model/transformer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "model/flops.hpp"
#include "parallel/random.hpp"
#include "parallel/spill_file.hpp"
#include "support/temporary_directory.hpp"
#include "support/tiny_model.hpp"

namespace longspan::model {
namespace {

using testing_support::TinyBatch;
using testing_support::Variant;

std::unique_ptr<Transformer> make(const Variant& v, std::int64_t length, Keep keep = Keep::kAll,
                                  std::int64_t chunk = 0, std::int64_t mlp_chunk = 0,
                                  ActivationPlan plan = {}) {
  MemoryConfig memory;
  memory.keep = keep, memory.loss_chunk = chunk, memory.mlp_chunk = mlp_chunk;
  auto model = std::make_unique<Transformer>(
      v.config, v.attention, memory, shard_sequence(length, SequenceLayout::kContiguous, nullptr),
      cpu_backend(), std::move(plan));
  model->parameters().initialize(3);
  // Larger matrices than a real start: gradients must be well above the rounding of fp32.
  for (std::size_t id = 0; id < model->parameters().parameters().size(); ++id)
    if (model->parameters().parameters()[id].decay)
      for (float& w : model->parameters().weight(id)) w *= 5.0f;
  return model;
}

std::vector<float> gradients_of(Transformer& model, TinyBatch& data, double* loss = nullptr) {
  const MicroBatch batch = data.slice(0, 2, model.shards().mine());
  const View<float> gradients = model.parameters().gradients();
  std::fill(gradients.begin(), gradients.end(), 0.0f);
  const double sum = model.train(batch, 1.0f / static_cast<float>(data.valid_targets()));
  if (loss != nullptr) *loss = sum / static_cast<double>(data.valid_targets());
  return {gradients.begin(), gradients.end()};
}

double loss_of(Transformer& model, TinyBatch& data) {
  double loss = 0;
  gradients_of(model, data, &loss);
  return loss;
}

Variant in_bf16(Variant v) {
  v.config.precision = Precision::kBf16;
  return v;
}

double relative_difference(const std::vector<float>& found, const std::vector<float>& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(expected[i] - found[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / norm);
}

class TransformerVariants : public testing::TestWithParam<Variant> {};

// Every parameter of every variant: the derivative along a random direction against central
// differences of the loss.
TEST_P(TransformerVariants, GradientsMatchFiniteDifferences) {
  const auto model = make(GetParam(), 21);
  TinyBatch data(2, 21, GetParam().config.vocabulary, 5, GetParam().documents);
  const std::vector<float> gradients = gradients_of(*model, data);
  for (std::size_t id = 0; id < model->parameters().parameters().size(); ++id) {
    const Parameter& p = model->parameters().parameters()[id];
    const View<float> weight = model->parameters().weight(id);
    const std::vector<float> original(weight.begin(), weight.end());
    double slope = 0, gradient_norm = 0;
    std::vector<float> direction(original.size());
    for (std::size_t i = 0; i < original.size(); ++i) {
      const float g = gradients[static_cast<std::size_t>(p.offset) + i];
      gradient_norm += static_cast<double>(g) * g;
    }
    gradient_norm = std::sqrt(gradient_norm);
    ASSERT_GT(gradient_norm, 0.0) << p.name << " gets no gradient";
    // Half along the gradient, half at random: a large slope that still sees every element.
    for (std::size_t i = 0; i < original.size(); ++i) {
      const float g = gradients[static_cast<std::size_t>(p.offset) + i];
      direction[i] = static_cast<float>(g / gradient_norm) +
                     0.5f * normal_at(id, i) / std::sqrt(static_cast<float>(original.size()));
      slope += static_cast<double>(g) * direction[i];
    }
    const double epsilon = 2e-3;
    const auto shifted_loss = [&](double by) {
      for (std::size_t i = 0; i < original.size(); ++i)
        weight[static_cast<std::int64_t>(i)] = original[i] + static_cast<float>(by) * direction[i];
      return loss_of(*model, data);
    };
    const double difference = (shifted_loss(epsilon) - shifted_loss(-epsilon)) / (2 * epsilon);
    std::copy(original.begin(), original.end(), weight.begin());
    EXPECT_NEAR(difference, slope, 0.01 * std::abs(slope) + 3e-4)
        << GetParam().name << " " << p.name;
  }
}

TEST_P(TransformerVariants, ActivationCheckpointingIsBitForBitNeutral) {
  TinyBatch data(2, 21, GetParam().config.vocabulary, 5, GetParam().documents);
  for (const Variant& v : {GetParam(), in_bf16(GetParam())})
    for (const std::int64_t mlp_chunk : {0, 5}) {
      double expected_loss = 0;
      const auto reference = make(v, 21, Keep::kAll, 0, mlp_chunk);
      const std::vector<float> expected = gradients_of(*reference, data, &expected_loss);
      for (Keep keep : {Keep::kAttention, Keep::kBlock}) {
        double loss = 0;
        const auto model = make(v, 21, keep, 0, mlp_chunk);
        const std::vector<float> gradients = gradients_of(*model, data, &loss);
        EXPECT_EQ(loss, expected_loss);
        EXPECT_EQ(std::memcmp(gradients.data(), expected.data(), expected.size() * sizeof(float)),
                  0)
            << v.name << " keep=" << (keep == Keep::kBlock ? "block" : "attention")
            << " mlp-chunk=" << mlp_chunk
            << (v.config.precision == Precision::kBf16 ? " bf16" : " fp32");
      }
    }
}

TEST_P(TransformerVariants, ChunksDoNotChangeTheAnswer) {
  TinyBatch data(2, 21, GetParam().config.vocabulary, 5, GetParam().documents);
  double whole = 0;
  const auto expected = gradients_of(*make(GetParam(), 21, Keep::kAll, 1000, 1000), data, &whole);
  for (const bool of_mlp : {false, true}) {
    double chunked = 0;
    const auto model = make(GetParam(), 21, Keep::kAll, of_mlp ? 1000 : 5, of_mlp ? 5 : 1000);
    const auto gradients = gradients_of(*model, data, &chunked);
    EXPECT_NEAR(whole, chunked, 1e-6 * whole);
    EXPECT_LT(relative_difference(gradients, expected), 1e-6);
  }
}

TEST_P(TransformerVariants, AnyMixOfKeepModesIsBitForBitNeutral) {
  Variant v = GetParam();
  v.config.layers = 3;
  TinyBatch data(2, 21, v.config.vocabulary, 5, v.documents);
  double expected_loss = 0;
  const std::vector<float> expected = gradients_of(*make(v, 21), data, &expected_loss);
  const Keep modes[] = {Keep::kAll, Keep::kAttention, Keep::kBlock};
  for (int mix = 0; mix < 27; ++mix) {
    double loss = 0;
    const ActivationPlan plan = {{modes[mix / 9], modes[mix / 3 % 3], modes[mix % 3]}};
    const auto gradients = gradients_of(*make(v, 21, Keep::kAuto, 0, 0, plan), data, &loss);
    EXPECT_EQ(loss, expected_loss) << v.name << " mix " << mix;
    EXPECT_EQ(std::memcmp(gradients.data(), expected.data(), expected.size() * sizeof(float)), 0)
        << v.name << " mix " << mix;
  }
}

TEST_P(TransformerVariants, OffloadIsBitForBitNeutral) {
  Variant v = GetParam();
  v.config.layers = 4;
  TinyBatch data(2, 21, v.config.vocabulary, 5, v.documents);
  double expected_loss = 0;
  const std::vector<float> expected = gradients_of(*make(v, 21), data, &expected_loss);
  const testing_support::TemporaryDirectory folder;
  SpillFile file(folder.path(), 0);
  const std::vector<std::vector<Keep>> mixes = {
      std::vector<Keep>(4, Keep::kAll),
      std::vector<Keep>(4, Keep::kAttention),
      std::vector<Keep>(4, Keep::kBlock),
      {Keep::kBlock, Keep::kAttention, Keep::kAll, Keep::kAttention}};
  for (const auto& mix : mixes) {
    const auto model = make(v, 21, Keep::kAuto, 0, 0, {mix});
    model->offload_to(file);
    const std::int64_t before = file.bytes_written();
    for (int pass = 0; pass < 2; ++pass) {
      double loss = 0;
      const auto gradients = gradients_of(*model, data, &loss);
      EXPECT_EQ(loss, expected_loss) << v.name;
      EXPECT_EQ(std::memcmp(gradients.data(), expected.data(), expected.size() * sizeof(float)), 0)
          << v.name << " pass " << pass;
    }
    MemoryConfig memory;
    memory.offload = Offload::kFile;
    EXPECT_EQ(file.bytes_written() - before, 2 * offloaded_bytes(v.config, memory, {2, 21}, {mix}));
  }
}

// Eight bits of fraction in every operand; the bounds are about twice what rounding alone gives.
TEST_P(TransformerVariants, Bf16StaysNearFp32) {
  TinyBatch data(2, 21, GetParam().config.vocabulary, 5, GetParam().documents);
  double expected_loss = 0, loss = 0;
  const auto expected = gradients_of(*make(GetParam(), 21), data, &expected_loss);
  const auto gradients = gradients_of(*make(in_bf16(GetParam()), 21), data, &loss);
  EXPECT_NE(loss, expected_loss);
  EXPECT_NEAR(loss, expected_loss, 2e-3 * expected_loss);
  EXPECT_LT(relative_difference(gradients, expected), 0.02);
}

// The rounded copy of the weights follows the weights, whoever writes them.
TEST_P(TransformerVariants, Bf16ReadsTheWeightsOfThisPass) {
  TinyBatch data(2, 21, GetParam().config.vocabulary, 5, GetParam().documents);
  const auto used = make(in_bf16(GetParam()), 21), fresh = make(in_bf16(GetParam()), 21);
  const double before = loss_of(*used, data);
  for (const auto& model : {used.get(), fresh.get()})
    for (float& w : model->parameters().weights()) w *= 1.25f;
  const double after = loss_of(*used, data);
  EXPECT_NE(after, before);
  EXPECT_EQ(after, loss_of(*fresh, data));
}

TEST_P(TransformerVariants, EvaluateEqualsTrainingLossWithoutDropout) {
  Variant v = GetParam();
  v.config.dropout = 0.0f;
  const auto model = make(v, 21);
  TinyBatch data(2, 21, v.config.vocabulary, 5, v.documents);
  const double trained = loss_of(*model, data);
  EXPECT_EQ(model->evaluate(data.slice(0, 2, model->shards().mine())) /
                static_cast<double>(data.valid_targets()),
            trained);
}

TEST_P(TransformerVariants, GradientsBecomeReadyFromTheEndAndStayAsTheyAre) {
  const auto model = make(GetParam(), 21);
  TinyBatch data(2, 21, GetParam().config.vocabulary, 5, GetParam().documents);
  const MicroBatch batch = data.slice(0, 2, model->shards().mine());
  const View<float> gradients = model->parameters().gradients();
  std::vector<float> seen(static_cast<std::size_t>(gradients.size()));
  /// Copies each unit's gradients when they are said to be final.
  struct Copies : UnitKeeper {
    const ParameterStore& store;
    std::vector<float>& seen;
    std::int64_t from;
    Copies(const ParameterStore& s, std::vector<float>& into)
        : store(s), seen(into), from(s.count()) {}
    void need_weights(int, int) override {}
    void done_weights(int) override {}
    void need_gradients(int) override {}
    void gradients_final(int unit) override {
      const FlatRange range = store.units()[static_cast<std::size_t>(unit)];
      EXPECT_EQ(range.end(), from);
      std::copy_n(store.gradients().begin() + range.begin, range.count,
                  seen.begin() + static_cast<std::ptrdiff_t>(range.begin));
      from = range.begin;
    }
  } copies(model->parameters(), seen);
  model->parameters().set_keeper(&copies);
  model->train(batch, 1.0f);
  model->parameters().set_keeper(nullptr);
  EXPECT_EQ(copies.from, 0);
  EXPECT_EQ(std::memcmp(seen.data(), gradients.data(), seen.size() * sizeof(float)), 0)
      << "a gradient changed after it was ready";
}

INSTANTIATE_TEST_SUITE_P(All, TransformerVariants, testing::ValuesIn(testing_support::variants()),
                         [](const auto& info) { return info.param.name; });

TEST(Transformer, NamesTheFirstLayerThatIsNotFinite) {
  const Variant v = testing_support::variants()[1];
  const auto model = make(v, 21);
  TinyBatch data(2, 21, v.config.vocabulary, 5);
  const MicroBatch batch = data.slice(0, 2, model->shards().mine());
  EXPECT_EQ(model->first_non_finite(batch), "");
  for (std::size_t id = 0; id < model->parameters().parameters().size(); ++id)
    if (model->parameters().parameters()[id].name == "blocks.1.mlp.up.weight")
      std::fill_n(model->parameters().weight(id).data(), 32, 3e38f);
  EXPECT_EQ(model->first_non_finite(batch), "output of blocks.1");
}

TEST(Transformer, InitialWeightsDependOnSeedAndNameOnly) {
  Variant a = testing_support::variants()[1], b = a;
  b.config.layers = 1;  // another model: the parameters they share start alike
  const auto two = make(a, 21), one = make(b, 21);
  const auto& p = one->parameters().parameters();
  for (std::size_t id = 0; id < p.size(); ++id) {
    if (p[id].name.find("output") != std::string::npos ||
        p[id].name.find("down") != std::string::npos)
      continue;  // scaled by depth
    for (std::size_t other = 0; other < two->parameters().parameters().size(); ++other)
      if (two->parameters().parameters()[other].name == p[id].name) {
        EXPECT_EQ(
            std::memcmp(one->parameters().weight(id).data(), two->parameters().weight(other).data(),
                        static_cast<std::size_t>(p[id].count()) * sizeof(float)),
            0)
            << p[id].name;
      }
  }
}

}  // namespace
}  // namespace longspan::model
