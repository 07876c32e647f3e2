/// Checkpoints: a folder per step, one HDF5 shard per writing rank and index.h5, in the layout of
/// FORMAT.md. A checkpoint exists when its folder has its final name; the folder is renamed after
/// every byte is on disk. The program restores from the shards by the manifest, never through the
/// virtual datasets. Read next: FORMAT.md, checkpoint_reader.hpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/fence.hpp"
#include "parallel/array.hpp"
#include "parallel/communicator.hpp"

namespace longspan::io {

/// What a run needs besides its tensors, and what a person wants to know.
struct CheckpointFacts {
  std::int64_t step = 0;
  std::int64_t tokens_seen = 0;
  std::uint64_t seed = 0;
  std::int64_t next_sample = 0;  ///< data cursor: the first sample the next step reads
  std::string dataset_uuid;
  std::string tokenizer;  ///< JSON of the dataset's tokenizer, for generate
  int data = 1, context = 1, tensor = 1, world_size = 1;
  std::string config;  ///< effective configuration, INI text
  std::string program_version;
  std::int64_t created_unix = 0;    ///< filled in by write_checkpoint
  std::string uuid;                 ///< filled in by write_checkpoint
  std::vector<float> loss_history;  ///< losses of the last steps
};

/// Writes `<directory>/step-<10 digits>/` and points `<directory>/latest` at it. `arrays` are the
/// blocks this rank writes: over all ranks every element of every tensor exactly once. A rank may
/// bring several blocks of one tensor, under its name, but at least one, if of 0 rows; tensors and
/// the order of their first blocks are equal on all ranks. Temporary folder, pwrite, fsync, rename,
/// then `latest`: the previous checkpoint stays valid whatever happens, a full disk included (the
/// temporary folder is removed and every rank throws the same AgreedError). If the step exists
/// already with every hash right it is left as it is; a damaged one is replaced. With a fence (rank
/// 0's counts), nothing of it happens once that is lost. Collective over `comm`. Returns the path.
std::string write_checkpoint(const std::string& directory, const std::vector<ShardedArray>& arrays,
                             const CheckpointFacts& facts, const Communicator& comm,
                             const Fence* fence = nullptr);

/// Removes temporary folders that a dead run left, and all but the `keep` newest checkpoints (0 =
/// all stay); with a fence, throws Error and removes nothing once that is lost. One rank calls it.
void prune_checkpoints(const std::string& directory, std::int64_t keep,
                       const Fence* fence = nullptr);

/// The newest complete checkpoint of a directory: `latest` if it resolves to one, else the highest
/// step with a readable index; empty if there is none. Not collective.
std::string newest_checkpoint(const std::string& directory);

}  // namespace longspan::io
