/// Logits, loss and every gradient of two tiny models against PyTorch in double precision
/// (tests/golden/make_golden.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "model/transformer.hpp"
#include "support/golden.hpp"

namespace longspan::model {
namespace {

class Golden : public testing::TestWithParam<const char*> {};

double relative_error(const float* found, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(found[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

TEST_P(Golden, ForwardAndBackwardEqualPyTorch) {
  const auto golden = testing_support::read_golden(GetParam());
  Transformer model(golden.model, {}, {},
                    shard_sequence(golden.sequence_length, SequenceLayout::kContiguous, nullptr),
                    cpu_backend());
  const ParameterStore& store = model.parameters();
  ASSERT_EQ(store.parameters().size(), golden.parameters.size());
  for (std::size_t id = 0; id < store.parameters().size(); ++id) {
    const auto& p = golden.parameters.at(store.parameters()[id].name);
    ASSERT_EQ(p.shape, store.parameters()[id].shape) << store.parameters()[id].name;
    std::copy(p.weight.begin(), p.weight.end(), store.weight(id).begin());
  }
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(golden.batch));
  MicroBatch batch;
  batch.sequences = golden.batch;
  batch.inputs_BT = {golden.tokens.data(), static_cast<std::int64_t>(golden.tokens.size())};
  batch.targets_BT = {golden.targets.data(), static_cast<std::int64_t>(golden.targets.size())};
  batch.sequence_numbers_B = {numbers.data(), golden.batch};

  EXPECT_LT(relative_error(model.logits(batch).data(), golden.logits), 2e-6);
  const double valid = static_cast<double>(golden.valid_targets);
  const double loss = model.train(batch, static_cast<float>(1.0 / valid)) / valid;
  EXPECT_NEAR(loss, golden.loss, 1e-6 * golden.loss);
  for (std::size_t id = 0; id < store.parameters().size(); ++id) {
    const auto& p = golden.parameters.at(store.parameters()[id].name);
    EXPECT_LT(relative_error(store.gradient(id).data(), p.gradient), 5e-6)
        << store.parameters()[id].name;
  }
}

INSTANTIATE_TEST_SUITE_P(PyTorch, Golden, testing::Values("gpt2_tiny", "llama_tiny"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace longspan::model
