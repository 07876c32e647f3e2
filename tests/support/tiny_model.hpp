/// Small models and batches for tests: every option of the model appears in one of the variants.
#pragma once

#include <string>
#include <vector>

#include "model/transformer.hpp"

namespace longspan::testing_support {

struct Variant {
  std::string name;
  model::ModelConfig config;
  model::AttentionConfig attention;
  bool documents = false;
};

/// GPT-2-shaped, Llama-shaped, and the options in between.
std::vector<Variant> variants();

/// A global micro-batch of random tokens, the same on every rank, and the part of it that a shard
/// holds.
class TinyBatch {
 public:
  TinyBatch(std::int64_t sequences, std::int64_t length, std::int64_t vocabulary,
            std::uint64_t seed, bool documents = false);
  /// The tokens at `positions` of the sequences [first, first + count); valid while this object
  /// lives.
  model::MicroBatch slice(std::int64_t first, std::int64_t count,
                          const std::vector<std::int32_t>& positions);
  std::int64_t valid_targets() const { return valid_; }
  std::int64_t length() const { return length_; }

 private:
  std::int64_t sequences_, length_, valid_ = 0;
  std::vector<std::int32_t> inputs_, targets_, documents_;
  std::vector<std::int32_t> slice_inputs_, slice_targets_, slice_documents_;
  std::vector<std::int64_t> slice_numbers_;
};

}  // namespace longspan::testing_support
