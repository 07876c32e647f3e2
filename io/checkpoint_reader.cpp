#include "io/checkpoint_reader.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "io/block_copy.hpp"
#include "io/checkpoint_index.hpp"
#include "io/checksum.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "io/statistics.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

using Block = TensorEntry::Block;

constexpr std::int64_t kPiece = std::int64_t{8} << 20;  // read, hash and copy while it is in cache
constexpr std::int64_t kAlwaysHashed = std::int64_t{1} << 20;
constexpr std::int64_t kShortRun = std::int64_t{64}
                                   << 10;  // below, one large read beats many small ones
constexpr std::size_t kOpenShards = 64;    // limits on open files may be low

std::int64_t bytes_of(const TensorEntry& tensor, const Block& block) {
  return element_count(block.shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
}

/// What is wrong with a shard before any of its data is read; empty if nothing.
std::string shard_problem(const std::string& path, std::int64_t bytes, int rank,
                          const CheckpointFacts& facts) {
  const std::int64_t size = file_size(path);
  if (size < 0) return "the shard is missing";
  if (is_directory(path)) return "the shard is a folder";
  if (size != bytes)
    return fmt::format("the shard has {} bytes, {} were written{}", size, bytes,
                       size < bytes ? " (truncated)" : "");
  try {
    const hdf5::File file = hdf5::File::open(path);
    if (!file.has_attribute("/", "format") || file.text_attribute("/", "format") != kShardFormat)
      return "an HDF5 file, but not a shard of a checkpoint";
    const std::string uuid = file.text_attribute("/", "checkpoint_uuid");
    if (uuid != facts.uuid)
      return fmt::format("belongs to another checkpoint (step {}, uuid {}; this one is {})",
                         file.i64_attribute("/", "step"), uuid, facts.uuid);
    const std::int64_t holds = file.i64_attribute("/", "rank");
    if (holds != rank)
      return fmt::format("holds the blocks of rank {}, not of rank {}: were shards swapped?", holds,
                         rank);
  } catch (const Error& error) {
    std::string text = error.what();
    if (text.starts_with(path + ": ")) text.erase(0, path.size() + 2);
    return text;
  }
  return "";
}

}  // namespace

struct CheckpointReader::Impl {
  std::string path;
  CheckpointIndex index;
  std::map<std::string, std::size_t> by_name;
  std::vector<bool> checked;
  std::map<int, RawFile> open;
  std::vector<char> buffer;

  std::string shard_path(int shard) const {
    return path + "/" + index.shard_files[static_cast<std::size_t>(shard)];
  }

  const TensorEntry& find(const std::string& name) const {
    const auto found = by_name.find(name);
    if (found == by_name.end()) fail_usage("{}: holds no tensor '{}'", path, name);
    return index.tensors[found->second];
  }

  /// The shard, open; existence, size and identity are checked when it is first used.
  const RawFile& shard(int number) {
    const auto i = static_cast<std::size_t>(number);
    if (!checked[i]) {
      const std::string problem =
          shard_problem(shard_path(number), index.shard_bytes[i], number, index.facts);
      if (!problem.empty()) {
        const std::string lost = lost_tensors(index, number, file_size(shard_path(number)));
        fail_damaged("{}: {}{}{}", shard_path(number), problem, lost.empty() ? "" : ": ", lost);
      }
      checked[i] = true;
    }
    if (const auto found = open.find(number); found != open.end()) return found->second;
    if (open.size() >= kOpenShards) open.clear();
    return open.emplace(number, RawFile::open(shard_path(number), RawFile::Mode::kRead))
        .first->second;
  }

  /// Reads bytes [begin, end) of a block piece by piece, hands each piece with its position to
  /// `consume`, and returns the hash.
  template <class Consume>
  std::uint64_t stream(const Block& block, std::int64_t begin, std::int64_t end,
                       Consume&& consume) {
    const RawFile& file = shard(block.shard);
    buffer.resize(std::max(buffer.size(), static_cast<std::size_t>(std::min(kPiece, end - begin))));
    Checksum hash;
    for (std::int64_t at = begin; at < end; at += kPiece) {
      const std::int64_t count = std::min(kPiece, end - at);
      file.read(buffer.data(), count, static_cast<std::int64_t>(block.file_offset) + at);
      hash.update(buffer.data(), static_cast<std::size_t>(count));
      consume(buffer.data(), at, count);
    }
    return hash.digest();
  }

  void require_hash(const TensorEntry& tensor, const Block& block, std::uint64_t found) const {
    if (found != block.xxh3)
      fail_damaged(
          "{}: tensor '{}' is damaged: its hash is {:016x}, {:016x} was written: use another "
          "checkpoint "
          "(`longspan inspect --verify` lists all damage)",
          shard_path(block.shard), tensor.name, found, block.xxh3);
  }

  void read_block(const TensorEntry& tensor, const Block& block, const BlockOverlap& overlap,
                  char* out) {
    const std::int64_t bytes = bytes_of(tensor, block);
    std::int64_t begin = overlap.source_byte(0);
    std::int64_t end = overlap.source_byte(overlap.runs() - 1) + overlap.run_bytes();
    const bool long_runs = overlap.run_bytes() >= kShortRun;
    const std::int64_t needed = long_runs ? overlap.bytes() : end - begin;
    const bool hashed = bytes < kAlwaysHashed || needed * 4 >= bytes;
    if (hashed) {
      begin = 0;
      end = bytes;
    } else if (long_runs) {
      const RawFile& file = shard(block.shard);
      for (std::int64_t run = 0; run < overlap.runs(); ++run)
        file.read(out + overlap.wanted_byte(run), overlap.run_bytes(),
                  static_cast<std::int64_t>(block.file_offset) + overlap.source_byte(run));
      return;
    }
    std::int64_t run = 0;
    const std::uint64_t hash =
        stream(block, begin, end, [&](const char* piece, std::int64_t first, std::int64_t count) {
          // Runs come in the order of their source bytes; one that ends in the next piece is met
          // again there.
          for (; run < overlap.runs(); ++run) {
            const std::int64_t source = overlap.source_byte(run);
            const std::int64_t from = std::max(source, first);
            const std::int64_t to = std::min(source + overlap.run_bytes(), first + count);
            if (from < to)
              std::memcpy(out + overlap.wanted_byte(run) + (from - source), piece + (from - first),
                          static_cast<std::size_t>(to - from));
            if (source + overlap.run_bytes() > first + count) break;
          }
        });
    if (hashed) require_hash(tensor, block, hash);
  }
};

CheckpointReader::CheckpointReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  // The index may be named instead of its folder.
  impl_->path = base_name(path) == "index.h5" ? parent_path(path) : path;
  impl_->index = read_index(impl_->path);
  impl_->checked.assign(impl_->index.shard_files.size(), false);
  for (std::size_t i = 0; i < impl_->index.tensors.size(); ++i)
    impl_->by_name[impl_->index.tensors[i].name] = i;
}

CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader::~CheckpointReader() = default;

const CheckpointFacts& CheckpointReader::facts() const {
  return impl_->index.facts;
}
const std::vector<TensorEntry>& CheckpointReader::tensors() const {
  return impl_->index.tensors;
}
bool CheckpointReader::has(const std::string& name) const {
  return impl_->by_name.contains(name);
}
std::vector<std::string> CheckpointReader::shard_files() const {
  return impl_->index.shard_files;
}
std::vector<std::int64_t> CheckpointReader::shard_bytes() const {
  return impl_->index.shard_bytes;
}

void CheckpointReader::read(const ShardedArray& array) {
  const TensorEntry& tensor = impl_->find(array.name);
  if (tensor.global_shape != array.global_shape || tensor.dtype != array.dtype)
    fail_usage(
        "{}: '{}' is {} {} in the checkpoint, {} {} is wanted: was the model configured "
        "differently?",
        impl_->path, array.name, name_of(tensor.dtype), to_string(tensor.global_shape),
        name_of(array.dtype), to_string(array.global_shape));
  std::int64_t filled = 0;
  for (const Block& block : tensor.blocks) {
    const auto overlap = BlockOverlap::of(block.offset, block.shape, array.offset, array.shape,
                                          static_cast<std::int64_t>(size_of(tensor.dtype)));
    if (!overlap) continue;
    impl_->read_block(tensor, block, *overlap, static_cast<char*>(array.data));
    filled += overlap->bytes();
  }
  if (filled != array.bytes())
    fail_damaged("{}: the shards hold {} of the {} bytes wanted of '{}'", impl_->path, filled,
                 array.bytes(), array.name);
}

std::vector<VerifyProblem> CheckpointReader::verify(
    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const CheckpointIndex& index = impl_->index;
  std::vector<VerifyProblem> problems;
  std::int64_t total = 0, done = 0;
  for (const TensorEntry& tensor : index.tensors)
    for (const Block& block : tensor.blocks) total += bytes_of(tensor, block);
  std::vector<bool> usable(index.shard_files.size(), true);
  for (std::size_t i = 0; i < index.shard_files.size(); ++i) {
    const int number = static_cast<int>(i);
    const std::string problem =
        shard_problem(impl_->shard_path(number), index.shard_bytes[i], number, index.facts);
    usable[i] = problem.empty();
    impl_->checked[i] = usable[i];
    if (!usable[i]) problems.push_back({index.shard_files[i], "", problem});
  }
  impl_->open.clear();
  for (const TensorEntry& tensor : index.tensors) {
    for (const Block& block : tensor.blocks) {
      const auto i = static_cast<std::size_t>(block.shard);
      const std::int64_t bytes = bytes_of(tensor, block);
      if (usable[i]) {
        try {
          const std::uint64_t found =
              impl_->stream(block, 0, bytes, [&](const char*, std::int64_t at, std::int64_t count) {
                if (progress) progress(done + at + count, total);
              });
          if (found != block.xxh3)
            problems.push_back(
                {index.shard_files[i], tensor.name,
                 fmt::format("hash is {:016x}, {:016x} was written", found, block.xxh3)});
        } catch (const Error& error) {
          problems.push_back({index.shard_files[i], tensor.name, error.what()});
        }
      } else {
        // Of an unusable shard, say which tensors are lost; a truncated one has still lost only
        // what lies behind its end.
        const std::int64_t size = file_size(impl_->shard_path(block.shard));
        if (size < static_cast<std::int64_t>(block.file_offset) + bytes)
          problems.push_back(
              {index.shard_files[i], tensor.name, fmt::format("{} are gone", format_bytes(bytes))});
      }
      done += bytes;
    }
  }
  return problems;
}

TensorStatistics CheckpointReader::statistics(const std::string& name) {
  const TensorEntry& tensor = impl_->find(name);
  RunningStatistics statistics;
  for (const Block& block : tensor.blocks) {
    const auto hash = impl_->stream(block, 0, bytes_of(tensor, block),
                                    [&](const char* piece, std::int64_t, std::int64_t bytes) {
                                      statistics.add(tensor.dtype, piece, bytes);
                                    });
    impl_->require_hash(tensor, block, hash);
  }
  return statistics.result();
}

}  // namespace longspan::io
