#include "io/checkpoint_convert.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <ctime>
#include <utility>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_shard.hpp"
#include "io/checksum.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

constexpr std::int64_t kPiece = std::int64_t{16} << 20;
constexpr int kMostShards = 99999;  // five digits in their names

/// The whole tensor, without data.
ShardedArray whole(const TensorSource& tensor) {
  return {tensor.name,  tensor.dtype, tensor.shape, Shape(tensor.shape.size(), 0),
          tensor.shape, nullptr};
}

std::int64_t bytes_of(const std::vector<TensorSource>& tensors) {
  std::int64_t bytes = 0;
  for (const TensorSource& tensor : tensors) bytes += whole(tensor).bytes();
  return bytes;
}

/// Copies tensors into files and counts.
class Copier {
 public:
  Copier(std::int64_t all, const ConvertProgress& progress) : all_(all), progress_(progress) {}

  /// Writes `block` of the tensor at `offset` of the file, its bytes passed through `stored`;
  /// returns their hashes.
  template <class Stored>
  ChunkedChecksum copy(const TensorSource& tensor, const ShardedArray& block, RawFile& file,
                       std::uint64_t offset, Stored&& stored) {
    ChunkedChecksum hash(kChunkBytes);
    if (block.bytes() == 0) return hash;
    const std::int64_t rows = block.shape[0], row_bytes = block.bytes() / rows;
    const std::int64_t at_once = std::clamp<std::int64_t>(kPiece / row_bytes, 1, rows);
    buffer_.resize(std::max(buffer_.size(), static_cast<std::size_t>(at_once * row_bytes)));
    auto at = static_cast<std::int64_t>(offset);
    for (std::int64_t row = 0; row < rows; row += at_once) {
      ShardedArray piece = block;
      piece.offset[0] += row;
      piece.shape[0] = std::min(at_once, rows - row);
      piece.data = buffer_.data();
      tensor.read(piece);
      const auto [data, bytes] = stored(buffer_.data(), piece.bytes());
      hash.update(data, bytes);
      file.write(data, bytes, at);
      file.start_writeback(at, bytes);
      at += bytes;
      done_ += piece.bytes();
      if (progress_) progress_(done_, all_);
    }
    return hash;
  }

 private:
  std::int64_t all_, done_ = 0;
  const ConvertProgress& progress_;
  std::vector<char> buffer_;
};

std::pair<const char*, std::int64_t> unchanged(const char* data, std::int64_t bytes) {
  return {data, bytes};
}

void require_tensors(const std::vector<TensorSource>& tensors) {
  for (const TensorSource& tensor : tensors)
    if (tensor.name.empty() || tensor.shape.empty())
      fail("convert: '{}' {} cannot be a tensor of a checkpoint", tensor.name,
           to_string(tensor.shape));
}

}  // namespace

std::vector<TensorSource> tensors_of(CheckpointReader& from) {
  std::vector<TensorSource> tensors;
  for (const TensorEntry& entry : from.tensors())
    tensors.push_back({entry.name, entry.dtype, entry.global_shape,
                       [&from](const ShardedArray& rows) { from.read(rows); }});
  return tensors;
}

void require_intact(CheckpointReader& from, const std::string& path,
                    const ConvertProgress& progress) {
  const auto problems = from.verify(progress);
  if (problems.empty()) return;
  const VerifyProblem& first = problems.front();
  fail_damaged("{}/{}: {}{}{}: convert another checkpoint (`longspan inspect --verify` lists all)",
               path, first.shard,
               first.tensor.empty() ? "" : "tensor '" + first.tensor + "': ", first.what,
               problems.size() == 1 ? "" : fmt::format(" (one of {} problems)", problems.size()));
}

std::string begin_replacement(const std::string& path, std::int64_t bytes) {
  if (path_exists(path)) fail_usage("{} exists: give another name, or remove it first", path);
  const std::string parent = parent_path(path);
  make_directories(parent);
  const std::string temporary = fmt::format("{}/.{}.tmp", parent, base_name(path));
  remove_path(temporary);
  require_free_space(parent, bytes, path);
  return temporary;
}

void commit_replacement(const std::string& temporary, const std::string& path) {
  if (is_directory(temporary)) sync_directory(temporary);
  rename_path(temporary, path);
  sync_directory(parent_path(path));
}

void abandon_replacement(const std::string& temporary) noexcept {
  try {
    remove_path(temporary);
  } catch (const std::exception&) {
    // What made us give up is what is reported.
  }
}

void write_checkpoint_from(const std::string& folder, const std::vector<TensorSource>& tensors,
                           CheckpointFacts facts, int shards, const ConvertProgress& progress,
                           const std::function<void(const std::string&)>& finish) {
  if (shards < 1 || shards > kMostShards)
    fail_usage("{} shards: a checkpoint has 1 to {}", shards, kMostShards);
  require_tensors(tensors);
  const std::int64_t bytes = bytes_of(tensors);
  const auto parts = static_cast<std::int64_t>(tensors.size()) * shards;
  const std::string temporary = begin_replacement(folder, bytes + 8192 * parts);
  try {
    make_directory(temporary);
    CheckpointIndex index;
    facts.uuid = random_uuid();
    facts.world_size = shards;
    facts.created_unix = static_cast<std::int64_t>(std::time(nullptr));
    index.facts = facts;
    index.chunk_bytes = kChunkBytes;
    for (const TensorSource& tensor : tensors)
      index.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, {}});
    Copier copier(bytes, progress);
    for (int shard = 0; shard < shards; ++shard) {
      index.shard_files.push_back(shard_file_name(shard, shards));
      const std::string path = temporary + "/" + index.shard_files.back();
      std::vector<ShardedArray> blocks;
      for (const TensorSource& tensor : tensors)
        blocks.push_back(rows_of_replica(whole(tensor), shard, shards));
      const auto offsets = lay_out_shard(path, blocks, facts, shard, shards);
      RawFile file = RawFile::open(path, RawFile::Mode::kWrite);
      index.shard_bytes.push_back(file.size());
      file.reserve(file.size());
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        if (blocks[i].bytes() == 0) continue;
        const auto hash = copier.copy(tensors[i], blocks[i], file, offsets[i], unchanged);
        index.tensors[i].blocks.push_back(
            {shard, blocks[i].offset, blocks[i].shape, offsets[i], hash.digest(), hash.chunks()});
      }
      file.sync();
      file.close();
    }
    require_exact_cover(index.tensors);
    write_index(temporary + "/index.h5", index);
    sync_file(temporary + "/index.h5");
    if (finish) finish(temporary);
    commit_replacement(temporary, folder);
  } catch (...) {
    abandon_replacement(temporary);
    throw;
  }
}

void write_merged_from(const std::string& path, const std::vector<TensorSource>& tensors,
                       const CheckpointFacts& facts, const ConvertProgress& progress) {
  require_tensors(tensors);
  const std::int64_t bytes = bytes_of(tensors);
  std::int64_t room = 1 << 20;
  for (const TensorSource& tensor : tensors)
    room += 8192 + whole(tensor).bytes() * (tensor.dtype == DType::kBF16 ? 2 : 1);
  const std::string temporary = begin_replacement(path, room);
  try {
    // Other tools need not know bfloat16: as f32 it is the same numbers.
    const auto stored_as = [](DType dtype) { return dtype == DType::kBF16 ? DType::kF32 : dtype; };
    std::vector<std::uint64_t> offsets;
    {
      hdf5::File file = hdf5::File::create(
          temporary, static_cast<std::int64_t>(tensors.size()) * 1000 + (1 << 16));
      write_facts(file, facts);
      file.set_attribute("/", "format", kMergedFormat);
      file.set_attribute("/", "format_version", kCheckpointFormatVersion);
      file.set_attribute("/", "hdf5_version", hdf5::version());
      for (const TensorSource& tensor : tensors) {
        offsets.push_back(
            file.create_contiguous(tensor.name, stored_as(tensor.dtype), tensor.shape));
        file.set_attribute(tensor.name, "dtype", std::string(name_of(tensor.dtype)));
      }
      file.close();
    }
    std::vector<std::uint64_t> hashes;
    {
      RawFile file = RawFile::open(temporary, RawFile::Mode::kWrite);
      file.reserve(file.size());
      Copier copier(bytes, progress);
      std::vector<std::uint32_t> widened;
      const auto as_f32 = [&](const char* data, std::int64_t size) {
        widened.resize(std::max(widened.size(), static_cast<std::size_t>(size / 2)));
        for (std::int64_t i = 0; i < size / 2; ++i) {
          std::uint16_t value = 0;
          std::memcpy(&value, data + 2 * i, sizeof value);
          widened[static_cast<std::size_t>(i)] = std::uint32_t{value} << 16;
        }
        return std::pair(reinterpret_cast<const char*>(widened.data()), 2 * size);
      };
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        const TensorSource& tensor = tensors[i];
        const ShardedArray all = whole(tensor);
        hashes.push_back(tensor.dtype == DType::kBF16
                             ? copier.copy(tensor, all, file, offsets[i], as_f32).digest()
                             : copier.copy(tensor, all, file, offsets[i], unchanged).digest());
      }
      file.sync();
      file.close();
    }
    hdf5::File file = hdf5::File::update(temporary);
    for (std::size_t i = 0; i < tensors.size(); ++i)
      file.set_attribute(tensors[i].name, "xxh3", hashes[i]);
    file.close();
    sync_file(temporary);
    commit_replacement(temporary, path);
  } catch (...) {
    abandon_replacement(temporary);
    throw;
  }
}

}  // namespace longspan::io
