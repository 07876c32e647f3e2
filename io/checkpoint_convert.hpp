/// Checkpoints written by one process, piece by piece, from tensors that come piece by piece:
/// resharded, merged, or made of foreign files. Never holds more than a few megabytes, however
/// large the model. Nothing here communicates. Read next: FORMAT.md.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/checkpoint_reader.hpp"

namespace longspan::io {

/// A tensor whose elements come when they are asked for.
struct TensorSource {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  /// Fills `rows` (some rows of dim 0, all of the other dims).
  std::function<void(const ShardedArray& rows)> read;
};

/// Hears of (bytes done, all bytes).
using ConvertProgress = std::function<void(std::int64_t, std::int64_t)>;

/// The tensors of a checkpoint. `from` outlives them.
std::vector<TensorSource> tensors_of(CheckpointReader& from);

/// Hashes everything. Throws Error (damaged) naming the first shard and tensor that is not as
/// written: afterwards pieces may be read without hashing whole blocks.
/// `path`: where it is, for the message.
void require_intact(CheckpointReader& from, const std::string& path,
                    const ConvertProgress& progress = {});

/// Writes the checkpoint `folder` (any name; it must not exist) in `shards` shards, each of which
/// holds consecutive rows of every tensor. Under a temporary name, synced, renamed; nothing stays
/// if it fails. `finish` may add files to the folder before it is renamed. The uuid, the time and
/// the number of shards of `facts` are filled in.
void write_checkpoint_from(const std::string& folder, const std::vector<TensorSource>& tensors,
                           CheckpointFacts facts, int shards, const ConvertProgress& progress = {},
                           const std::function<void(const std::string&)>& finish = {});

/// Writes one HDF5 file (FORMAT.md section 3; it must not exist) in the same way.
void write_merged_from(const std::string& path, const std::vector<TensorSource>& tensors,
                       const CheckpointFacts& facts, const ConvertProgress& progress = {});

/// Where something is written until it is complete, next to `path`; cleared of what an interrupted
/// attempt left. Throws Error: usage if `path` exists, failed if `bytes` do not fit.
std::string begin_replacement(const std::string& path, std::int64_t bytes);
/// Makes it `path`, durably. What is inside has been synced.
void commit_replacement(const std::string& temporary, const std::string& path);
/// After a failure: removes it if that works.
void abandon_replacement(const std::string& temporary) noexcept;

}  // namespace longspan::io
