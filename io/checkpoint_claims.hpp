/// What a checkpoint's manifest may claim: it is input from others, and is checked before anything
/// is allocated, opened or read by it. Nothing here communicates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "io/checkpoint_reader.hpp"

namespace longspan::io {

/// Far above any real manifest, far below what would hurt.
constexpr std::int64_t kMostManifestRows = std::int64_t{1} << 26;
constexpr std::int64_t kMostManifestText = std::int64_t{64} << 20;
constexpr std::size_t kMostTensorDims = 32;  ///< of HDF5 too

/// A name that is a path inside HDF5 files, a key of other formats, and shown to people. Throws
/// Error (damaged) that names `path`.
void require_tensor_name(const std::string& path, const std::string& name);
/// Shards lie next to their index, wherever that is: a path could lead anywhere. Throws likewise.
void require_shard_name(const std::string& path, const std::string& name);

/// What is wrong with the blocks of a tensor, which must lie inside it and not meet; empty if they
/// cover it exactly once. `patience`: comparisons left; 0 on return = given up.
std::string cover_problem(const TensorEntry& tensor, std::int64_t& patience);
/// Comparisons that any real layout needs: blocks side by side are as many as a tensor group.
std::int64_t patience_for(const std::vector<TensorEntry>& tensors);

}  // namespace longspan::io
