/// A dataset of token ids: one HDF5 file in the layout of FORMAT.md, opened, validated and then
/// read with pread at the offset of its contiguous token array; HDF5 is not involved after open().
/// Nothing here communicates. Read next: sampler.hpp (which window a sample is), loader.hpp (the
/// thread that reads ahead).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/array.hpp"

namespace longspan::io {

enum class Split { kTrain, kValid };

struct DatasetFacts {
  std::string path, uuid, source, created_by;
  DType dtype = DType::kU8;
  std::int64_t tokens = 0;
  std::int64_t vocabulary = 0;  ///< ids are in [0, vocabulary)
  std::string tokenizer;  ///< JSON: {"kind":"bytes"} | {"kind":"nucleotides","letters":"ACGTN..."}
                          ///< | {"kind":"ids"}
  std::vector<std::uint64_t> document_offsets;  ///< [documents + 1], first 0, last = tokens
  std::int64_t train_documents = 0;  ///< documents [0, train_documents) train, the others validate
};

/// Text of tokens and tokens of text, by the `tokenizer` JSON of a dataset or a checkpoint.
class Tokenizer {
 public:
  explicit Tokenizer(const std::string& json);  ///< throws Error (damaged) for an unknown kind
  /// White space between nucleotides or ids is skipped. Throws Error (usage) naming a letter it
  /// lacks.
  std::vector<std::int32_t> encode(const std::string& text) const;
  std::string decode(const std::vector<std::int32_t>& ids) const;
  std::int64_t vocabulary()
      const;  ///< ids below it decode to text; larger ones are padding of the embedding
 private:
  std::string kind_, letters_;
};

class TokenDataset {
 public:
  /// Throws Error (damaged) for a missing, empty, truncated or foreign file, with what is wrong and
  /// what to do.
  static TokenDataset open(const std::string& path);
  TokenDataset(TokenDataset&&) noexcept;
  TokenDataset& operator=(TokenDataset&&) noexcept;
  ~TokenDataset();

  const DatasetFacts& facts() const;
  /// First token and number of tokens of a split; the train split's documents come first in the
  /// file.
  std::int64_t split_begin(Split split) const;
  std::int64_t split_tokens(Split split) const;

  /// Tokens [first, first + count) of the whole array, widened to int32. Thread safe. Throws Error
  /// (damaged) when a token is not below the vocabulary or the file has shrunk.
  void read(std::int64_t first, std::int64_t count, std::int32_t* ids) const;
  /// Number of the document that holds each of the tokens [first, first + count).
  void read_documents(std::int64_t first, std::int64_t count, std::int32_t* documents) const;
  /// Hashes every block; throws Error (damaged) naming the first block and byte range that differs.
  void verify() const;

 private:
  struct Impl;
  explicit TokenDataset(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longspan::io
