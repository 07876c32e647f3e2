/// What writer and reader of dataset files share: names, sizes and the content hash of FORMAT.md,
/// section 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/token_dataset.hpp"

namespace longspan::io {

inline constexpr const char* kDatasetFormat = "longspan-dataset";
inline constexpr std::int64_t kDatasetVersion = 1;
inline constexpr std::int64_t kHashBlockBytes = 16 << 20;
inline constexpr std::int64_t kLargestVocabulary = 2147483647;  ///< ids are int32 in memory

inline std::int64_t hash_blocks(std::int64_t token_bytes) {
  return (token_bytes + kHashBlockBytes - 1) / kHashBlockBytes;
}

namespace hdf5 {
class File;
}

/// What a dataset's file holds besides the tokens.
struct DatasetTables {
  DatasetFacts facts;
  std::uint64_t tokens_offset = 0;  ///< byte of the file where they begin
  std::vector<std::uint64_t> hashes;
};
/// Throws Error (damaged) unless all of it is as FORMAT.md says and fits together.
DatasetTables read_dataset_tables(const hdf5::File& file);

/// XXH3-64 with seed 0.
std::uint64_t xxh3(const void* data, std::size_t bytes);

/// The dataset's name by its contents: XXH3-128 of everything a training run can see (type,
/// vocabulary, tokenizer, document offsets, split, hashes of the token blocks), written as a
/// version-8 UUID (RFC 9562). Equal data, equal name.
std::string content_uuid(const DatasetFacts& facts, std::span<const std::uint64_t> block_hashes);

}  // namespace longspan::io
