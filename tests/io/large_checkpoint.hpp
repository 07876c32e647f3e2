/// A checkpoint as large as one likes that takes no room: a real index.h5 over shards that are
/// holes. Whatever reads more than metadata finds out.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "io/checkpoint_index.hpp"
#include "io/file.hpp"

namespace longspan::io::testing {

/// Writes `folder`: `tensors` tensors of fp32 [1024, 12512] (51 MB each), rows split over `shards`
/// (a divisor of 1024). A third are weights, seven a layer; the others their optimizer states.
/// Returns the bytes that the shards seem to have.
inline std::int64_t write_large_checkpoint(const std::string& folder, int tensors, int shards) {
  const Shape shape = {1024, 12512};
  const std::int64_t rows = shape[0] / shards;
  const std::int64_t block_bytes = rows * shape[1] * 4;
  CheckpointIndex index;
  index.facts.step = 1000;
  index.facts.uuid = "00000000-0000-4000-8000-000000000000";
  index.facts.world_size = shards;
  index.facts.data = shards;
  index.facts.config = "[model]\nlayers = 2\n";
  index.facts.tokenizer = R"({"kind":"bytes"})";
  index.facts.program_version = "longspan test";
  index.hdf5_version = "none";
  std::uint64_t next = 4096;
  const int weights = (tensors + 2) / 3;
  for (int i = 0; i < tensors; ++i) {
    const int weight = i % weights;
    const char* const groups[] = {"model", "optimizer/exp_avg", "optimizer/exp_avg_sq"};
    TensorEntry tensor;
    tensor.name =
        fmt::format("{}/blocks.{}.part{}.weight", groups[i / weights], weight / 7, weight % 7);
    tensor.global_shape = shape;
    for (int shard = 0; shard < shards; ++shard) {
      TensorEntry::Block block;
      block.shard = shard;
      block.offset = {shard * rows, 0};
      block.shape = {rows, shape[1]};
      block.file_offset = next;
      tensor.blocks.push_back(block);
    }
    next += static_cast<std::uint64_t>(block_bytes);
    index.tensors.push_back(std::move(tensor));
  }
  std::filesystem::create_directories(folder);
  for (int shard = 0; shard < shards; ++shard) {
    index.shard_files.push_back(shard_file_name(shard, shards));
    index.shard_bytes.push_back(static_cast<std::int64_t>(next));
    const std::string path = folder + "/" + index.shard_files.back();
    std::ofstream(path).put('\0');
    std::filesystem::resize_file(path, next);
  }
  write_index(folder + "/index.h5", index);
  return static_cast<std::int64_t>(next) * shards;
}

}  // namespace longspan::io::testing
