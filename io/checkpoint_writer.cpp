#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <map>
#include <utility>

#include "io/checkpoint.hpp"
#include "io/checkpoint_index.hpp"
#include "io/checkpoint_shard.hpp"
#include "io/checksum.hpp"
#include "io/direct_writer.hpp"
#include "io/file.hpp"
#include "parallel/agree.hpp"

namespace longspan::io {
namespace {

/// What one rank tells rank 0 about its shard; travels as bytes between equal machines.
struct BlockRecord {
  std::uint64_t tensor = 0, file_offset = 0, xxh3 = 0;
  Shape offset, shape;
  std::vector<std::uint64_t> chunk_xxh3;
};
struct ShardRecord {
  std::int64_t bytes = 0;
  std::vector<BlockRecord> blocks;
};

std::string packed(const ShardRecord& record) {
  std::string bytes;
  const auto put = [&](std::uint64_t value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  put(static_cast<std::uint64_t>(record.bytes));
  for (const BlockRecord& block : record.blocks) {
    put(block.tensor);
    put(block.file_offset);
    put(block.xxh3);
    for (const auto extent : block.offset) put(static_cast<std::uint64_t>(extent));
    for (const auto extent : block.shape) put(static_cast<std::uint64_t>(extent));
    for (const auto hash : block.chunk_xxh3) put(hash);
  }
  return bytes;
}

/// Appends the blocks of `shard` to the tensors and returns the shard's size.
std::int64_t unpack_into(std::vector<TensorEntry>& tensors, int shard, const std::string& bytes) {
  std::size_t next = 0;
  const auto get = [&] {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data() + next, sizeof value);
    next += sizeof value;
    return value;
  };
  const auto size = static_cast<std::int64_t>(get());
  while (next < bytes.size()) {
    TensorEntry& tensor = tensors[get()];
    TensorEntry::Block block;
    block.shard = shard;
    block.file_offset = get();
    block.xxh3 = get();
    for (Shape* dims : {&block.offset, &block.shape})
      for (std::size_t d = 0; d < tensor.global_shape.size(); ++d)
        dims->push_back(static_cast<std::int64_t>(get()));
    for (std::int64_t chunks = chunk_count(bytes_of(tensor, block), kChunkBytes); chunks > 0;
         --chunks)
      block.chunk_xxh3.push_back(get());
    tensor.blocks.push_back(std::move(block));
  }
  return size;
}

/// The tensors that the blocks belong to, each once, in the order of their first blocks.
struct Tensors {
  std::vector<TensorEntry> entries;
  std::vector<std::size_t> of_block;  ///< an entry for each block

  explicit Tensors(const std::vector<ShardedArray>& blocks) {
    std::map<std::string, std::size_t> known;
    for (const ShardedArray& block : blocks) {
      const auto [at, is_new] = known.try_emplace(block.name, entries.size());
      if (is_new) entries.push_back({block.name, block.dtype, block.global_shape, {}});
      of_block.push_back(at->second);
    }
  }
};

/// One line per tensor: name, type and global shape; equal on all ranks or the shards do not belong
/// together.
std::string description_of(const Tensors& tensors) {
  std::string text;
  for (const TensorEntry& tensor : tensors.entries)
    text += fmt::format("'{}' {} {}\n", tensor.name, name_of(tensor.dtype),
                        to_string(tensor.global_shape));
  return text;
}

void require_valid(const std::vector<ShardedArray>& arrays) {
  const Tensors tensors(arrays);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const ShardedArray& array = arrays[i];
    const TensorEntry& tensor = tensors.entries[tensors.of_block[i]];
    if (array.name.empty() || array.name.starts_with('/') || array.name.starts_with("manifest/") ||
        array.name.find('@') != std::string::npos)
      fail("checkpoint: '{}' cannot be the name of a tensor", array.name);
    if (tensor.dtype != array.dtype || tensor.global_shape != array.global_shape)
      fail("checkpoint: two tensors are called '{}'", array.name);
    const std::size_t dims = array.global_shape.size();
    bool inside = dims > 0 && array.offset.size() == dims && array.shape.size() == dims;
    for (std::size_t d = 0; inside && d < dims; ++d)
      inside = array.offset[d] >= 0 && array.shape[d] >= 0 &&
               array.offset[d] + array.shape[d] <= array.global_shape[d];
    if (!inside)
      fail("checkpoint: block {} at {} is not inside '{}' {} (scalars are stored as [1])",
           to_string(array.shape), to_string(array.offset), array.name,
           to_string(array.global_shape));
    if (array.data == nullptr && array.bytes() > 0)
      fail("checkpoint: '{}' has no data", array.name);
  }
}

/// Collective. Every rank must bring the same tensors; the error names the first that does not, and
/// the first difference.
void require_same_tensors(const std::vector<ShardedArray>& arrays, const Communicator& comm) {
  const std::string mine = description_of(Tensors(arrays));
  Checksum hash;
  hash.update(mine);
  const auto digest = static_cast<std::int64_t>(hash.digest() >> 1);
  if (comm.all_reduce_min(digest) == comm.all_reduce_max(digest)) return;
  const std::string first = comm.broadcast(mine, 0);
  agree(comm, [&] {
    if (mine == first) return;
    const auto at = std::mismatch(mine.begin(), mine.end(), first.begin(), first.end());
    const auto line = [](const std::string& text, std::string::const_iterator position) {
      const auto begin = text.rfind(
          '\n', static_cast<std::size_t>(position - text.begin() - (position != text.begin())));
      const auto start = position == text.begin() || begin == std::string::npos ? 0 : begin + 1;
      return start >= text.size() ? "nothing" : text.substr(start, text.find('\n', start) - start);
    };
    fail("checkpoint: rank {} brings other tensors than rank 0: {} where rank 0 has {}",
         comm.rank(), line(mine, at.first), line(first, at.second));
  });
}

/// HDF5 lays the shard out, then the bytes go past it: no lock during the bulk. Pieces are on their
/// way to the disk while the next ones are hashed.
ShardRecord write_shard(const std::string& path, const std::vector<ShardedArray>& arrays,
                        const CheckpointFacts& facts, int rank, int world_size) {
  if (!is_directory(parent_path(path)))
    fail(
        "{}: rank {} does not see this folder: run.directory must be on a file system that all "
        "nodes share",
        parent_path(path), rank);
  ShardRecord record;
  const Tensors tensors(arrays);
  std::vector<const ShardedArray*> written;  // of each block of the record
  const auto offsets = lay_out_shard(path, arrays, facts, rank, world_size);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const ShardedArray& array = arrays[i];
    if (array.bytes() == 0) continue;
    record.blocks.push_back({tensors.of_block[i], offsets[i], 0, array.offset, array.shape, {}});
    written.push_back(&array);
  }
  DirectWriter file(path);
  record.bytes = file.size();
  file.reserve(record.bytes);
  for (std::size_t i = 0; i < written.size(); ++i) {
    const ShardedArray& array = *written[i];
    BlockRecord& block = record.blocks[i];
    ChunkedChecksum hash(kChunkBytes);
    file.write(array.data, array.bytes(), static_cast<std::int64_t>(block.file_offset), &hash);
    block.xxh3 = hash.digest();
    block.chunk_xxh3 = hash.chunks();
  }
  file.sync();
  file.close();
  return record;
}

CheckpointIndex index_of(const std::vector<ShardedArray>& arrays, const CheckpointFacts& facts,
                         const std::vector<std::string>& records) {
  CheckpointIndex index;
  index.facts = facts;
  index.chunk_bytes = kChunkBytes;
  index.tensors = Tensors(arrays).entries;
  for (std::size_t shard = 0; shard < records.size(); ++shard) {
    index.shard_files.push_back(
        shard_file_name(static_cast<int>(shard), static_cast<int>(records.size())));
    index.shard_bytes.push_back(
        unpack_into(index.tensors, static_cast<int>(shard), records[shard]));
  }
  return index;
}

void point_latest_at(const std::string& checkpoint, const Fence* fence) {
  const std::string directory = parent_path(checkpoint);
  replace_symlink(base_name(checkpoint), directory + "/latest",
                  temporary_path(directory, "latest", fence));
}

/// From a folder under its temporary name to a checkpoint. Each sync orders what follows after what
/// precedes it.
/// With a fence that is lost, the first rename that matters finds no `temporary`.
void commit(const std::string& temporary, const std::string& final_path, const Fence* fence) {
  const std::string directory = parent_path(final_path);
  sync_file(temporary + "/index.h5");
  sync_directory(temporary);
  std::string replaced;
  if (path_exists(final_path)) {  // only ever a damaged one, see write_checkpoint
    replaced = temporary_path(directory, base_name(final_path) + ".damaged", fence);
    remove_path(replaced);
    rename_path(final_path, replaced);
  }
  rename_path(temporary, final_path);
  sync_directory(directory);
  point_latest_at(final_path, fence);
  sync_directory(directory);
  if (!replaced.empty()) remove_path(replaced);
}

}  // namespace

std::string write_checkpoint(const std::string& directory, const std::vector<ShardedArray>& arrays,
                             const CheckpointFacts& facts, const Communicator& comm,
                             const Fence* fence) {
  const std::string final_path = directory + "/" + step_folder_name(facts.step);
  agree(comm, [&] { require_valid(arrays); });
  require_same_tensors(arrays, comm);

  CheckpointFacts complete = facts;
  complete.world_size = comm.size();
  complete.created_unix = static_cast<std::int64_t>(std::time(nullptr));
  std::int64_t bytes =
      64 << 10;  // names, alignment and tables: generous, so that "enough" means enough
  for (const ShardedArray& array : arrays) bytes += array.bytes() + 8192;
  bytes = comm.all_reduce_sum(bytes);

  // A rank of a dead run that still writes for a moment must not meet its successor's files: the
  // name is never the same twice.
  const auto temporary_of = [&](const CheckpointFacts& of) {
    const std::string name = fmt::format("{}.{}", step_folder_name(of.step), of.uuid.substr(0, 8));
    return temporary_path(directory, name, fence);
  };
  bool exists = false;
  agree(comm, [&] {
    if (comm.rank() != 0) return;
    if (fence != nullptr) fence->require();
    make_directories(directory);
    // Rare, so every hash is looked at: a run that went back behind a damaged checkpoint comes
    // here.
    exists = path_exists(final_path) && why_incomplete(final_path).empty() &&
             CheckpointReader(final_path).verify().empty();
    if (exists) {
      // A crash may have come between the rename and the link.
      if (symlink_target(directory + "/latest") != base_name(final_path))
        point_latest_at(final_path, fence);
      return;
    }
    complete.uuid = random_uuid();
    remove_temporary(directory, fence);  // what a dead run left must not fill the disk
    require_free_space(directory, bytes, fmt::format("the checkpoint of step {}", facts.step));
    make_directory(temporary_of(complete));
  });
  if (comm.broadcast(std::int64_t{exists}, 0) != 0) return final_path;
  complete.uuid = comm.broadcast(complete.uuid, 0);
  // The fence is rank 0's alone.
  const std::string temporary = comm.broadcast(temporary_of(complete), 0);

  try {
    ShardRecord record;
    agree(comm, [&] {
      record = write_shard(temporary + "/" + shard_file_name(comm.rank(), comm.size()), arrays,
                           complete, comm.rank(), comm.size());
    });
    const auto records = comm.gather(packed(record), 0);
    agree(comm, [&] {
      if (comm.rank() != 0) return;
      const CheckpointIndex index = index_of(arrays, complete, records);
      require_exact_cover(index.tensors);
      write_index(temporary + "/index.h5", index);
      if (fence != nullptr) fence->require();  // says more than a rename that fails
      commit(temporary, final_path, fence);
    });
  } catch (const AgreedError&) {
    // All ranks are past their writes: agree() returned or threw everywhere.
    if (comm.rank() == 0) {
      try {
        remove_path(temporary);
      } catch (const Error&) {
        // The first error is the one to report; prune_checkpoints removes the rest later.
      }
    }
    throw;
  }
  return final_path;
}

}  // namespace longspan::io
