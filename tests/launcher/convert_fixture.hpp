/// Checkpoints of tiny models with weights that leave no tensor out of the result, and their
/// logits: shared by the tests of `longspan convert`.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/checkpoint_reader.hpp"
#include "launcher/options.hpp"
#include "model/transformer.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {

/// A resolved configuration.
inline RunConfig config_of(const std::vector<std::string>& settings, std::int64_t vocabulary) {
  RunConfig config = parse_config("", settings);
  resolve(config, vocabulary);
  return config;
}

inline std::vector<std::string> gpt2_settings() {
  return {"--model.layers",   "2",         "--model.width", "32",   "--model.heads",          "4",
          "--model.norm",     "layernorm", "--model.mlp",   "gelu", "--model.mlp-width",      "48",
          "--model.position", "learned",   "--model.bias",  "on",   "--data.sequence-length", "24"};
}

inline std::vector<std::string> llama_settings() {
  return {"--model.layers",         "2",    "--model.width",          "32",
          "--model.heads",          "4",    "--model.kv-heads",       "2",
          "--model.head-size",      "16",   "--model.mlp-width",      "48",
          "--model.rope-theta",     "5000", "--model.norm-epsilon",   "1e-6",
          "--model.tie-embeddings", "off",  "--data.sequence-length", "24"};
}

inline std::vector<std::string> operator+(std::vector<std::string> a,
                                          const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline model::Transformer transformer_of(const RunConfig& config) {
  return model::Transformer(
      config.model, config.attention, {},
      shard_sequence(config.data.sequence_length, SequenceLayout::kContiguous, nullptr),
      model::cpu_backend());
}

/// Writes a model with random weights (biases and norms too) and random optimizer states into
/// `directory`; returns the checkpoint's path. With `bf16` all weights are numbers of that type.
inline std::string write_model(const std::string& directory, const RunConfig& config,
                               const std::string& tokenizer, bool bf16 = false) {
  model::Transformer transformer = transformer_of(config);
  model::ParameterStore& store = transformer.parameters();
  store.initialize(7);
  const auto noise = [&](std::int64_t i) {
    const std::uint64_t bits = derive_key(99, static_cast<std::uint64_t>(i)) >> 40;
    return static_cast<float>(bits) / float(1 << 24) - 0.5f;
  };
  for (std::int64_t i = 0; i < store.count(); ++i) {
    float& weight = store.weights()[i];
    weight += 0.5f * noise(i);
    if (bf16) weight = std::bit_cast<float>(std::bit_cast<std::uint32_t>(weight) & 0xffff0000u);
  }
  std::vector<float> average, square;
  for (std::int64_t i = 0; i < store.count(); ++i) {
    average.push_back(noise(i + 1000000));
    square.push_back(noise(i + 2000000) + 0.5f);
  }
  auto arrays = store.arrays("model/", store.weights());
  for (auto& [name, values] :
       {std::pair("optimizer/exp_avg/", &average), std::pair("optimizer/exp_avg_sq/", &square)})
    for (auto& array : store.arrays(name, {values->data(), store.count()})) arrays.push_back(array);
  io::CheckpointFacts facts;
  facts.step = 12, facts.tokens_seen = 288, facts.seed = 3, facts.next_sample = 12;
  facts.dataset_uuid = "00000000-0000-8000-8000-000000000000";
  facts.tokenizer = tokenizer;
  facts.config = to_ini(config);
  facts.program_version = "a test";
  facts.loss_history = {3.0f, 2.0f};
  return io::write_checkpoint(directory, arrays, facts, Communicator::self());
}

inline std::vector<std::int32_t> some_tokens(std::int64_t count, std::int64_t vocabulary) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>(derive_key(5, static_cast<std::uint64_t>(i)) %
                                               static_cast<std::uint64_t>(vocabulary)));
  return tokens;
}

/// Logits [tokens, model.vocabulary] of a checkpoint's model.
inline std::vector<float> logits_of(const std::string& checkpoint,
                                    const std::vector<std::int32_t>& tokens) {
  io::CheckpointReader reader(checkpoint);
  RunConfig config = parse_ini(reader.facts().config);
  config.data.sequence_length = static_cast<std::int64_t>(tokens.size());
  model::Transformer transformer = transformer_of(config);
  const auto& store = transformer.parameters();
  for (const ShardedArray& array : store.arrays("model/", store.weights())) reader.read(array);
  const std::int64_t number = 0;
  model::MicroBatch batch;
  batch.sequences = 1;
  batch.inputs_BT = batch.targets_BT = {tokens.data(), config.data.sequence_length};
  batch.sequence_numbers_B = {&number, 1};
  const Buffer<float> logits = transformer.logits(batch);
  return {logits.data(), logits.data() + logits.size()};
}

/// All bytes of a tensor.
inline std::vector<char> bytes_of(io::CheckpointReader& reader, const io::TensorEntry& tensor) {
  ShardedArray all{tensor.name,         tensor.dtype,
                   tensor.global_shape, Shape(tensor.global_shape.size(), 0),
                   tensor.global_shape, nullptr};
  std::vector<char> bytes(static_cast<std::size_t>(all.bytes()));
  all.data = bytes.data();
  reader.read(all);
  return bytes;
}

/// That both hold the same tensors, bit for bit; `prefix`: only those that begin so.
inline void expect_equal_tensors(const std::string& a, const std::string& b,
                                 const std::string& prefix = "") {
  io::CheckpointReader left(a), right(b);
  std::size_t compared = 0;
  for (const io::TensorEntry& tensor : left.tensors()) {
    if (!tensor.name.starts_with(prefix)) continue;
    ++compared;
    ASSERT_TRUE(right.has(tensor.name)) << tensor.name;
    for (const io::TensorEntry& other : right.tensors()) {
      if (other.name != tensor.name) continue;
      EXPECT_EQ(other.global_shape, tensor.global_shape) << tensor.name;
      EXPECT_TRUE(bytes_of(left, tensor) == bytes_of(right, other)) << tensor.name;
    }
  }
  EXPECT_GT(compared, 0u);
  if (prefix.empty()) {
    EXPECT_EQ(left.tensors().size(), right.tensors().size());
  }
}

}  // namespace longspan::launcher
