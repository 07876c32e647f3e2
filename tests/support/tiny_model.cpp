#include "support/tiny_model.hpp"

#include <algorithm>

#include "parallel/random.hpp"

namespace longspan::testing_support {

using namespace model;

std::vector<Variant> variants() {
  ModelConfig base;
  base.layers = 2, base.width = 32, base.heads = 4, base.kv_heads = 4, base.head_size = 8;
  base.mlp_width = 48, base.vocabulary = 50, base.max_positions = 32;
  ModelConfig gpt2 = base;
  gpt2.mlp = MlpKind::kGelu, gpt2.norm = NormKind::kLayerNorm,
  gpt2.position = PositionKind::kLearned, gpt2.bias = true;
  ModelConfig llama = base;
  llama.kv_heads = 2, llama.tie_embeddings = false;
  ModelConfig sinusoidal = base;
  sinusoidal.position = PositionKind::kSinusoidal, sinusoidal.mlp = MlpKind::kGelu;
  ModelConfig bare = base;
  bare.position = PositionKind::kNone, bare.kv_heads = 1, bare.norm = NormKind::kLayerNorm;
  ModelConfig dropout = gpt2;
  dropout.dropout = 0.2f;
  AttentionConfig causal, window, full;
  window.window = 5;
  full.mask = MaskKind::kFull;
  return {{"gpt2", gpt2, causal, false},           {"llama", llama, causal, false},
          {"sinusoidal", sinusoidal, full, false}, {"bare", bare, window, false},
          {"dropout", dropout, causal, false},     {"documents", llama, causal, true}};
}

TinyBatch::TinyBatch(std::int64_t sequences, std::int64_t length, std::int64_t vocabulary,
                     std::uint64_t seed, bool documents)
    : sequences_(sequences), length_(length) {
  for (std::int64_t i = 0; i < sequences * length; ++i) {
    const auto words = philox(seed, 0, static_cast<std::uint64_t>(i));
    inputs_.push_back(static_cast<std::int32_t>(words[0] % static_cast<std::uint32_t>(vocabulary)));
    // Some targets do not count, and unevenly so: a mean per rank instead of a global one would
    // show.
    const bool counts = i % length > 2 && words[2] % 8 != 0;
    targets_.push_back(
        counts ? static_cast<std::int32_t>(words[1] % static_cast<std::uint32_t>(vocabulary)) : -1);
    valid_ += counts;
    if (documents) documents_.push_back(static_cast<std::int32_t>((i % length) / 7));
  }
}

MicroBatch TinyBatch::slice(std::int64_t first, std::int64_t count,
                            const std::vector<std::int32_t>& positions) {
  slice_inputs_.clear(), slice_targets_.clear(), slice_documents_.clear(), slice_numbers_.clear();
  for (std::int64_t b = first; b < first + count; ++b) {
    slice_numbers_.push_back(b);
    for (std::int32_t p : positions) {
      const std::size_t at = static_cast<std::size_t>(b * length_ + std::max(p, 0));
      slice_inputs_.push_back(p < 0 ? 0 : inputs_[at]);
      slice_targets_.push_back(p < 0 ? -1 : targets_[at]);
      if (!documents_.empty()) slice_documents_.push_back(p < 0 ? 0 : documents_[at]);
    }
  }
  MicroBatch batch;
  batch.sequences = count;
  batch.inputs_BT = {slice_inputs_.data(), static_cast<std::int64_t>(slice_inputs_.size())};
  batch.targets_BT = {slice_targets_.data(), static_cast<std::int64_t>(slice_targets_.size())};
  batch.documents_BT = {slice_documents_.data(),
                        static_cast<std::int64_t>(slice_documents_.size())};
  batch.sequence_numbers_B = {slice_numbers_.data(), count};
  batch.dropout_key = 99;
  return batch;
}

}  // namespace longspan::testing_support
