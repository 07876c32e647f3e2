/// What a dataset is made of: lengths of its documents, frequencies of its tokens. For `longspan
/// inspect`.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "io/token_dataset.hpp"

namespace longspan::io {

struct LengthBin {
  std::int64_t begin = 0, end = 0;  ///< documents of [begin, end) tokens
  std::int64_t documents = 0;
};

struct DocumentLengths {
  std::int64_t shortest = 0, median = 0, longest = 0;
  double mean = 0;
  std::vector<LengthBin>
      bins;  ///< 1-2-5 steps, from the shortest to the longest; none empty at either end
};

/// From the offsets alone; reads no token.
DocumentLengths document_lengths(const DatasetFacts& facts);

struct TokenCount {
  std::int32_t id = 0;
  std::int64_t count = 0;
};

struct TokenFrequencies {
  std::int64_t scanned = 0;  ///< tokens looked at
  bool sampled = false;      ///< not all of them: pieces of 1 Mi tokens at equal distances
  std::int64_t distinct = 0;
  double entropy_bits =
      0;  ///< per token, of the frequencies: what a model without context can reach
  std::vector<TokenCount> most_frequent;  ///< the largest first; equal counts by id
};

/// Scans the tokens, at most about `limit` of them. `progress`(done, total) may throw to stop.
TokenFrequencies token_frequencies(
    const TokenDataset& dataset, std::size_t top, std::int64_t limit = std::int64_t{256} << 20,
    const std::function<void(std::int64_t, std::int64_t)>& progress = {});

}  // namespace longspan::io
