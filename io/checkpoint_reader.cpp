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

constexpr std::int64_t kPiece = std::int64_t{4} << 20;  // read at once
constexpr std::size_t kOpenShards = 64;                 // limits on open files may be low

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
  std::int64_t bytes_read = 0;

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

  /// Reads bytes [begin, end) of a block piece by piece and hands each on with its position.
  template <class Consume>
  void stream(const Block& block, std::int64_t begin, std::int64_t end, Consume&& consume) {
    const RawFile& file = shard(block.shard);
    const auto start = static_cast<std::int64_t>(block.file_offset);
    buffer.resize(std::max(buffer.size(), static_cast<std::size_t>(std::min(kPiece, end - begin))));
    for (std::int64_t at = begin; at < end; at += kPiece) {
      const std::int64_t count = std::min(kPiece, end - at);
      file.read(buffer.data(), count, start + at);
      // The disk goes on while this piece is hashed.
      if (at + count < end)
        file.will_read(start + at + count, std::min(2 * kPiece, end - at - count));
      consume(buffer.data(), at, count);
    }
    bytes_read += end - begin;
  }

  /// The bytes of a block that have one hash: a chunk, or all of it where there is no table.
  std::int64_t hashed_bytes(const TensorEntry& tensor, const Block& block) const {
    return block.chunk_xxh3.empty() ? bytes_of(tensor, block) : index.chunk_bytes;
  }

  /// As stream(), with every hash compared. [begin, end) begins and ends with chunks.
  template <class Consume>
  void stream_checked(const TensorEntry& tensor, const Block& block, std::int64_t begin,
                      std::int64_t end, Consume&& consume) {
    const std::int64_t bytes = bytes_of(tensor, block), chunk = hashed_bytes(tensor, block);
    Checksum hash;
    stream(block, begin, end, [&](const char* piece, std::int64_t at, std::int64_t count) {
      while (count > 0) {
        const std::int64_t number = at / chunk, chunk_end = std::min((number + 1) * chunk, bytes);
        const std::int64_t part = std::min(count, chunk_end - at);
        hash.update(piece, static_cast<std::size_t>(part));
        if (at + part == chunk_end) {
          require_hash(tensor, block, number, hash.digest());
          hash = Checksum();
        }
        consume(piece, at, part);  // in the cache now
        piece += part, at += part, count -= part;
      }
    });
  }

  void require_hash(const TensorEntry& tensor, const Block& block, std::int64_t chunk,
                    std::uint64_t found) const {
    const bool table = !block.chunk_xxh3.empty();
    const std::uint64_t expected =
        table ? block.chunk_xxh3[static_cast<std::size_t>(chunk)] : block.xxh3;
    if (found == expected) return;
    const std::string place =
        block.chunk_xxh3.size() < 2
            ? ""
            : fmt::format(" (in bytes {} to {} of the file)",
                          static_cast<std::int64_t>(block.file_offset) + chunk * index.chunk_bytes,
                          static_cast<std::int64_t>(block.file_offset) +
                              std::min((chunk + 1) * index.chunk_bytes, bytes_of(tensor, block)) -
                              1);
    fail_damaged(
        "{}: tensor '{}' is damaged{}: its hash is {:016x}, {:016x} was written: use another "
        "checkpoint "
        "(`longspan inspect --verify` lists all damage)",
        shard_path(block.shard), tensor.name, place, found, expected);
  }

  /// Copies runs [first, last) of an overlap from the chunks [begin, end) that hold them.
  void copy_runs(const TensorEntry& tensor, const Block& block, const BlockOverlap& overlap,
                 std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end,
                 char* out) {
    std::int64_t run = first;
    stream_checked(tensor, block, begin, end,
                   [&](const char* piece, std::int64_t at, std::int64_t count) {
                     // Runs come in the order of their source bytes; one that ends in the next
                     // piece is met again there.
                     for (; run < last; ++run) {
                       const std::int64_t source = overlap.source_byte(run);
                       const std::int64_t from = std::max(source, at);
                       const std::int64_t to = std::min(source + overlap.run_bytes(), at + count);
                       if (from < to)
                         std::memcpy(out + overlap.wanted_byte(run) + (from - source),
                                     piece + (from - at), static_cast<std::size_t>(to - from));
                       if (source + overlap.run_bytes() > at + count) break;
                     }
                   });
  }

  void read_block(const TensorEntry& tensor, const Block& block, const BlockOverlap& overlap,
                  char* out) {
    const std::int64_t bytes = bytes_of(tensor, block), chunk = hashed_bytes(tensor, block);
    std::int64_t first = 0, begin = 0, end = 0;  // runs since `first` lie in [begin, end)
    for (std::int64_t run = 0; run < overlap.runs(); ++run) {
      const std::int64_t source = overlap.source_byte(run);
      const std::int64_t from = source / chunk * chunk;
      const std::int64_t to =
          std::min((source + overlap.run_bytes() + chunk - 1) / chunk * chunk, bytes);
      if (run > 0 && from > end) {  // nothing wanted in between
        copy_runs(tensor, block, overlap, first, run, begin, end, out);
        first = run;
      }
      if (run == first) begin = from;
      end = to;
    }
    copy_runs(tensor, block, overlap, first, overlap.runs(), begin, end, out);
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

std::int64_t CheckpointReader::bytes_read() const {
  return impl_->bytes_read;
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
          ChunkedChecksum hash(index.chunk_bytes > 0 ? index.chunk_bytes : bytes);
          impl_->stream(block, 0, bytes,
                        [&](const char* piece, std::int64_t at, std::int64_t count) {
                          hash.update(piece, count);
                          if (progress) progress(done + at + count, total);
                        });
          const bool table = !block.chunk_xxh3.empty();
          if (hash.digest() != block.xxh3 || (table && hash.chunks() != block.chunk_xxh3))
            problems.push_back(
                {index.shard_files[i], tensor.name,
                 fmt::format("hash is {:016x}, {:016x} was written", hash.digest(), block.xxh3)});
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
    impl_->stream_checked(tensor, block, 0, bytes_of(tensor, block),
                          [&](const char* piece, std::int64_t, std::int64_t bytes) {
                            statistics.add(tensor.dtype, piece, bytes);
                          });
  }
  return statistics.result();
}

}  // namespace longspan::io
