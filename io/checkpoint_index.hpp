/// index.h5 of a checkpoint as a value: facts, manifest and how both are stored (FORMAT.md
/// section 2.3); and the names in a directory of checkpoints. Shared by the writer, the reader and
/// `inspect`. Nothing here communicates.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/checkpoint_reader.hpp"

namespace longspan::io {
namespace hdf5 {
class File;
}

namespace hdf5 {
class File;
}

constexpr std::int64_t kCheckpointFormatVersion = 1;
/// Bytes of a block that have a hash of their own. Smaller ones waste less at the edges of what a
/// rank wants, and make the table longer: 8 bytes for each, 3 MB for 100 GB.
constexpr std::int64_t kChunkBytes = std::int64_t{64} << 10;
constexpr const char* kShardFormat = "longspan-checkpoint-shard";
constexpr const char* kIndexFormat = "longspan-checkpoint";
constexpr const char* kMergedFormat = "longspan-checkpoint-merged";

struct CheckpointIndex {
  CheckpointFacts facts;
  std::string hdf5_version;  ///< of the writer
  std::vector<std::string> shard_files;
  std::vector<std::int64_t> shard_bytes;
  std::vector<TensorEntry> tensors;
  /// Of the blocks' chunk_xxh3; 0 if the checkpoint was written without them.
  std::int64_t chunk_bytes = 0;
};

/// ceil(bytes / chunk_bytes), 0 without chunks.
std::int64_t chunk_count(std::int64_t bytes, std::int64_t chunk_bytes);
/// Bytes of a block.
std::int64_t bytes_of(const TensorEntry& tensor, const TensorEntry::Block& block);

/// "shard-00003-of-00016.h5"
std::string shard_file_name(int rank, int world_size);
/// The dataset of a shard that holds its block number `number` of a tensor: "model/norm.weight",
/// "model/norm.weight@1", ...
std::string block_dataset_name(const std::string& tensor, int number);
/// "step-0000001000"
std::string step_folder_name(std::int64_t step);

/// Throws Error unless the blocks of every tensor cover it exactly once; names the tensor and the
/// elements missing or written twice.
void require_exact_cover(const std::vector<TensorEntry>& tensors);

/// The facts as attributes of "/" and the datasets config, tokenizer and loss_history.
void write_facts(hdf5::File& file, const CheckpointFacts& facts);

/// Creates `path` with the manifest, its hash and a virtual dataset per tensor. Not durable until
/// synced.
void write_index(const std::string& path, const CheckpointIndex& index);
/// Reads `<folder>/index.h5`. Throws Error (damaged) for a missing or foreign file, a format of
/// another version, a manifest that does not match its hash or contradicts itself. Whoever wrote
/// it, afterwards shard names are bare, blocks lie inside their tensors and shards and cover each
/// tensor exactly once, and no product of extents overflows.
CheckpointIndex read_index(const std::string& folder);
CheckpointIndex read_index(const hdf5::File& file);
/// What `manifest/self_xxh3` of this index has to be, by all the rest of it.
std::uint64_t manifest_hash(const hdf5::File& file);

struct StoredCheckpoint {
  std::int64_t step = 0;
  std::string path;
};
/// The step folders of a directory, oldest first, complete or not.
std::vector<StoredCheckpoint> list_checkpoints(const std::string& directory);
/// The same in the order in which a restart tries them: the one that `latest` names, then from the
/// highest step down.
std::vector<StoredCheckpoint> restart_order(const std::string& directory);
/// Removes unfinished checkpoints, and what else has a temporary name: of a run that is dead, for
/// nothing may be written into `directory` at this moment.
void remove_temporary(const std::string& directory, const Fence* fence = nullptr);
/// "'model/norm.weight' and 7 more tensors are lost": those with bytes at or behind `size` in a
/// shard that should be longer. Empty if there are none.
std::string lost_tensors(const CheckpointIndex& index, int shard, std::int64_t size);
/// Why a folder is no complete checkpoint (unreadable index; a shard missing or of another size,
/// and which tensors were in it); empty if it is one. Looks at names and sizes only:
/// CheckpointReader::verify hashes.
std::string why_incomplete(const std::string& folder);
/// The same of a folder whose index has been read.
std::string why_incomplete(const std::string& folder, const CheckpointIndex& index);

}  // namespace longspan::io
