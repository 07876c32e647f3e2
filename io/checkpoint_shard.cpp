#include "io/checkpoint_shard.hpp"

#include <fmt/format.h>

#include <map>
#include <random>

#include "io/checkpoint_index.hpp"
#include "io/hdf5.hpp"

namespace longspan::io {

std::string random_uuid() {
  std::random_device device;
  std::uniform_int_distribution<std::uint64_t> any;
  const std::uint64_t high = (any(device) & ~std::uint64_t{0xf000}) | 0x4000;  // version 4: random
  const std::uint64_t low =
      (any(device) & ~(std::uint64_t{3} << 62)) | (std::uint64_t{1} << 63);  // RFC 4122
  return fmt::format("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", high >> 32, (high >> 16) & 0xffff,
                     high & 0xffff, low >> 48, low & 0xffffffffffff);
}

std::vector<std::uint64_t> lay_out_shard(const std::string& path,
                                         const std::vector<ShardedArray>& blocks,
                                         const CheckpointFacts& facts, int rank, int world_size) {
  const hdf5::Lock lock;
  hdf5::File file = hdf5::File::create(path, static_cast<std::int64_t>(blocks.size()) * 800);
  file.set_attribute("/", "format", kShardFormat);
  file.set_attribute("/", "format_version", kCheckpointFormatVersion);
  file.set_attribute("/", "checkpoint_uuid", facts.uuid);
  file.set_attribute("/", "step", facts.step);
  file.set_attribute("/", "rank", std::int64_t{rank});
  file.set_attribute("/", "world_size", std::int64_t{world_size});
  std::vector<std::uint64_t> offsets;
  std::map<std::string, int> blocks_of;  // of each tensor so far
  for (const ShardedArray& block : blocks) {
    offsets.push_back(0);
    if (block.bytes() == 0) continue;
    const std::string name = block_dataset_name(block.name, blocks_of[block.name]++);
    offsets.back() = file.create_contiguous(name, block.dtype, block.shape);
    file.set_attribute(name, "dtype", std::string(name_of(block.dtype)));
    file.set_attribute(name, "global_shape", block.global_shape);
    file.set_attribute(name, "global_offset", block.offset);
  }
  file.close();
  return offsets;
}

}  // namespace longspan::io
