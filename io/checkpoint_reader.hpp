/// Reading checkpoints: facts and tables from index.h5, blocks from the shards with their hashes
/// checked.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"

namespace longspan::io {

/// A logical tensor and where its blocks are.
struct TensorEntry {
  struct Block {
    int shard = 0;
    Shape offset, shape;
    std::uint64_t file_offset = 0;
    std::uint64_t xxh3 = 0;
    /// Of each chunk of CheckpointIndex::chunk_bytes; empty in checkpoints without the table.
    std::vector<std::uint64_t> chunk_xxh3;
  };
  std::string name;
  DType dtype = DType::kF32;
  Shape global_shape;
  std::vector<Block> blocks;
};

struct VerifyProblem {
  std::string shard, tensor, what;
};

/// Sum, norm and oddities of one tensor, accumulated in double.
struct TensorStatistics {
  std::int64_t count = 0, nan = 0, inf = 0;
  double mean = 0, standard_deviation = 0, norm = 0, minimum = 0, maximum = 0;
};

/// An opened checkpoint. Not thread safe. Nothing here communicates: every rank opens and reads
/// what it needs.
class CheckpointReader {
 public:
  /// Reads the index and its manifest. `path`: the folder or its index.h5. Throws Error (damaged)
  /// naming the file and what is wrong with it.
  explicit CheckpointReader(const std::string& path);
  CheckpointReader(CheckpointReader&&) noexcept;
  ~CheckpointReader();

  const CheckpointFacts& facts() const;
  const std::vector<TensorEntry>& tensors() const;
  bool has(const std::string& name) const;
  std::vector<std::string> shard_files() const;
  std::vector<std::int64_t> shard_bytes() const;

  /// Fills `array` (name, global_shape and block as asked for, data = destination) from whatever
  /// blocks overlap it, on any layout. Reads the chunks that hold what is wanted, and hashes every
  /// one of them (whole blocks where the checkpoint has no table of chunks): a rank reads little
  /// more than it needs, and nothing unchecked. Throws Error: usage if the tensor is missing or
  /// shaped otherwise (says both shapes), damaged naming shard, tensor, expected and found hash.
  void read(const ShardedArray& array);
  /// The same for many, which is faster: while one is checked the next ones are on their way. What
  /// they are filled with is unspecified if it throws.
  void read(const std::vector<ShardedArray>& arrays);
  /// Bytes of blocks that read() has read from shards so far.
  std::int64_t bytes_read() const;
  /// Every shard's existence, size, identity and every block's hash. Empty = all good. `progress`
  /// hears of (bytes done, all bytes).
  std::vector<VerifyProblem> verify(
      const std::function<void(std::int64_t, std::int64_t)>& progress = {});
  /// Reads the whole tensor, hashed; NaN and Inf are counted and left out of the rest.
  TensorStatistics statistics(const std::string& name);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longspan::io
