/// Generation: one token at a time with a cache of keys and values. Read next: sampling.hpp.
#pragma once

#include <cstdint>
#include <vector>

#include "model/transformer.hpp"
#include "parallel/host_copy.hpp"

namespace longspan::model {

class Decoder {
 public:
  /// Room for `capacity` tokens. The model holds whole sequences (no context group), is causal, and
  /// its weights do not change while the decoder lives.
  Decoder(Transformer& model, const AttentionConfig& attention, std::int64_t capacity);

  /// Appends the tokens and returns the logits after the last of them, [V]. Throws Error (usage)
  /// beyond the capacity. Does not communicate.
  std::vector<float> append(const std::vector<std::int32_t>& tokens);
  std::int64_t length() const { return length_; }

 private:
  const Transformer& model_;
  AttentionMask mask_;
  std::int64_t capacity_, length_ = 0;
  std::vector<Buffer<float>>
      cache_;  ///< per layer [capacity, 2 * G * K]: keys, then values of a token
  Uploaded<std::int32_t> positions_;  ///< 0, 1, ...
};

}  // namespace longspan::model
