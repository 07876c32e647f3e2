/// What every writer of checkpoints does alike, whether its tensors are in memory
/// (checkpoint_writer.cpp) or come piece by piece (checkpoint_convert.cpp). Nothing here
/// communicates.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"

namespace longspan::io {

/// The name of a new checkpoint: a random UUID (RFC 4122, version 4).
std::string random_uuid();

/// Creates a shard with a dataset for every block of `blocks` that has elements (their data is not
/// looked at) and returns the byte in the file where each begins; 0 for those without elements.
std::vector<std::uint64_t> lay_out_shard(const std::string& path,
                                         const std::vector<ShardedArray>& blocks,
                                         const CheckpointFacts& facts, int rank, int world_size);

}  // namespace longspan::io
