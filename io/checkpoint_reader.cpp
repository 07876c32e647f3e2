#include "io/checkpoint_reader.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <optional>
#include <utility>

#include "io/block_copy.hpp"
#include "io/checkpoint_chunks.hpp"
#include "io/checkpoint_index.hpp"
#include "io/checksum.hpp"
#include "io/direct_reader.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "io/statistics.hpp"
#include "parallel/error.hpp"
#include "parallel/host_copy.hpp"

namespace longspan::io {
namespace {

using Block = TensorEntry::Block;

/// A block that the host cannot reach: filled here, and copied when it is complete.
class Staged {
 public:
  explicit Staged(const ShardedArray& array) : array_(array), left_(array.bytes()) {}
  char* data() {
    if (bytes_.empty()) bytes_.resize(static_cast<std::size_t>(array_.bytes()));
    return bytes_.data();
  }
  /// So much more has been written to data().
  void filled(std::int64_t bytes) {
    left_ -= bytes;
    if (left_ > 0) return;
    array_.device->copy(array_.data, bytes_.data(), bytes_.size(), array_.device->stream());
    bytes_ = {};
  }

 private:
  const ShardedArray& array_;
  std::int64_t left_;
  std::vector<char> bytes_;
};

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
  std::optional<DirectReader> shards;
  std::int64_t bytes_read = 0;

  std::string shard_path(int shard) const {
    return path + "/" + index.shard_files[static_cast<std::size_t>(shard)];
  }

  const TensorEntry& find(const std::string& name) const {
    const auto found = by_name.find(name);
    if (found == by_name.end()) fail_usage("{}: holds no tensor '{}'", path, name);
    return index.tensors[found->second];
  }

  /// Existence, size and identity of a shard, once.
  void require_shard(int number) {
    const auto i = static_cast<std::size_t>(number);
    if (checked[i]) return;
    const std::string problem =
        shard_problem(shard_path(number), index.shard_bytes[i], number, index.facts);
    if (!problem.empty()) {
      const std::string lost = lost_tensors(index, number, file_size(shard_path(number)));
      fail_damaged("{}: {}{}{}", shard_path(number), problem, lost.empty() ? "" : ": ", lost);
    }
    checked[i] = true;
  }

  /// Part of a block, which begins and ends with chunks, and who wants what of it.
  struct Wanted {
    const TensorEntry* tensor = nullptr;
    const Block* block = nullptr;
    std::int64_t begin = 0, end = 0;  ///< bytes of the block
    std::size_t overlap = 0;          ///< copies its runs [first, last) to `out`
    std::int64_t first = 0, last = 0;
    char* out = nullptr;
  };

  DirectReader::Extent extent_of(const Wanted& wanted) const {
    const auto start = static_cast<std::int64_t>(wanted.block->file_offset);
    return {static_cast<std::size_t>(wanted.block->shard), start + wanted.begin,
            start + wanted.end};
  }

  /// The bytes of a block that have one hash: a chunk, or all of it where there is no table.
  std::int64_t hashed_bytes(const TensorEntry& tensor, const Block& block) const {
    return block.chunk_xxh3.empty() ? bytes_of(tensor, block) : index.chunk_bytes;
  }

  /// Reads the parts and hands on each piece with its place in the block and the number of its
  /// part, as soon as every chunk that ends in it has had its hash compared.
  template <class Consume>
  void stream_checked(const std::vector<Wanted>& parts, Consume&& consume) {
    std::vector<DirectReader::Extent> extents;
    for (const Wanted& part : parts) {
      require_shard(part.block->shard);
      extents.push_back(extent_of(part));
    }
    ChunkCheck check;
    shards->read(extents, [&](const DirectReader::Part& piece) {
      const Wanted& part = parts[piece.extent];
      if (piece.failure) fail_unreadable(part, piece.failure);
      const std::int64_t at = part.begin + piece.at;
      check.update(piece.data, piece.bytes, at, hashed_bytes(*part.tensor, *part.block),
                   bytes_of(*part.tensor, *part.block),
                   [&](std::int64_t chunk, std::uint64_t found) {
                     require_hash(*part.tensor, *part.block, chunk, found);
                   });
      consume(piece.extent, piece.data, at, piece.bytes);
    });
    for (const Wanted& part : parts) bytes_read += part.end - part.begin;
  }

  [[noreturn]] void fail_unreadable(const Wanted& part, const std::exception_ptr& failure) const {
    try {
      std::rethrow_exception(failure);
    } catch (const Error& error) {
      fail_damaged("{}: in tensor '{}'", error.what(), part.tensor->name);
    }
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

  /// The parts of a block that an overlap needs: chunks that follow each other are one.
  void plan(const TensorEntry& tensor, const Block& block, const BlockOverlap& overlap,
            std::size_t number, char* out, std::vector<Wanted>& parts) const {
    const std::int64_t bytes = bytes_of(tensor, block), chunk = hashed_bytes(tensor, block);
    for (std::int64_t run = 0; run < overlap.runs(); ++run) {
      const std::int64_t source = overlap.source_byte(run);
      const std::int64_t from = source / chunk * chunk;
      const std::int64_t to =
          std::min((source + overlap.run_bytes() + chunk - 1) / chunk * chunk, bytes);
      if (run == 0 || from > parts.back().end)  // nothing wanted in between
        parts.push_back({&tensor, &block, from, to, number, run, run, out});
      parts.back().end = to;
      parts.back().last = run + 1;
    }
  }
};

CheckpointReader::CheckpointReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  // The index may be named instead of its folder.
  impl_->path = base_name(path) == "index.h5" ? parent_path(path) : path;
  impl_->index = read_index(impl_->path);
  impl_->checked.assign(impl_->index.shard_files.size(), false);
  std::vector<std::string> paths;
  for (std::size_t i = 0; i < impl_->index.shard_files.size(); ++i)
    paths.push_back(impl_->shard_path(static_cast<int>(i)));
  impl_->shards.emplace(std::move(paths));
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
  read(std::vector<ShardedArray>{array});
}

void CheckpointReader::read(const std::vector<ShardedArray>& arrays) {
  std::vector<BlockOverlap> overlaps;
  std::vector<Impl::Wanted> parts;
  std::deque<Staged> staged;
  std::vector<Staged*> staged_of;  // an overlap; null: straight into the block
  for (const ShardedArray& array : arrays) {
    Staged* const stage = on_host(array) ? nullptr : &staged.emplace_back(array);
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
      impl_->plan(tensor, block, *overlap, overlaps.size(), static_cast<char*>(array.data), parts);
      overlaps.push_back(*overlap);
      staged_of.push_back(stage);
      filled += overlap->bytes();
    }
    if (filled != array.bytes())
      fail_damaged("{}: the shards hold {} of the {} bytes wanted of '{}'", impl_->path, filled,
                   array.bytes(), array.name);
  }
  impl_->stream_checked(
      parts, [&](std::size_t number, const char* piece, std::int64_t at, std::int64_t count) {
        Impl::Wanted& part = parts[number];
        const BlockOverlap& overlap = overlaps[part.overlap];
        Staged* const stage = staged_of[part.overlap];
        char* const out = stage != nullptr ? stage->data() : part.out;
        std::int64_t written = 0;
        // Runs come in the order of their source bytes; one that ends in the next piece is met
        // again there.
        for (; part.first < part.last; ++part.first) {
          const std::int64_t source = overlap.source_byte(part.first);
          const std::int64_t from = std::max(source, at);
          const std::int64_t to = std::min(source + overlap.run_bytes(), at + count);
          if (from < to) {
            std::memcpy(out + overlap.wanted_byte(part.first) + (from - source),
                        piece + (from - at), static_cast<std::size_t>(to - from));
            written += to - from;
          }
          if (source + overlap.run_bytes() > at + count) break;
        }
        if (stage != nullptr) stage->filled(written);
      });
}

std::vector<VerifyProblem> CheckpointReader::verify(
    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const CheckpointIndex& index = impl_->index;
  std::vector<VerifyProblem> problems;
  std::vector<bool> usable(index.shard_files.size(), true);
  for (std::size_t i = 0; i < index.shard_files.size(); ++i) {
    const int number = static_cast<int>(i);
    const std::string problem =
        shard_problem(impl_->shard_path(number), index.shard_bytes[i], number, index.facts);
    usable[i] = problem.empty();
    impl_->checked[i] = usable[i];
    if (!usable[i]) problems.push_back({index.shard_files[i], "", problem});
  }
  std::vector<Impl::Wanted> parts;
  std::vector<DirectReader::Extent> extents;
  std::vector<std::string> wrong;  // with each part
  std::int64_t total = 0, done = 0;
  for (const TensorEntry& tensor : index.tensors) {
    for (const Block& block : tensor.blocks) {
      const std::int64_t bytes = bytes_of(tensor, block);
      parts.push_back({&tensor, &block, 0, bytes});
      extents.push_back(impl_->extent_of(parts.back()));
      wrong.emplace_back();
      total += bytes;
      if (usable[static_cast<std::size_t>(block.shard)]) continue;
      extents.back().end = extents.back().begin;  // not read
      done += bytes;
      // Of an unusable shard, say which tensors are lost; a truncated one has still lost only
      // what lies behind its end.
      const std::int64_t size = file_size(impl_->shard_path(block.shard));
      if (size < static_cast<std::int64_t>(block.file_offset) + bytes)
        wrong.back() = fmt::format("{} are gone", format_bytes(bytes));
    }
  }
  std::optional<ChunkedChecksum> hash;
  impl_->shards->read(extents, [&](const DirectReader::Part& piece) {
    const Impl::Wanted& part = parts[piece.extent];
    std::string& problem = wrong[piece.extent];
    if (piece.at == 0) hash.emplace(index.chunk_bytes > 0 ? index.chunk_bytes : part.end);
    done += piece.bytes;
    if (piece.failure) {
      try {
        std::rethrow_exception(piece.failure);
      } catch (const Error& error) {
        if (problem.empty()) problem = error.what();
      }
    } else {
      hash->update(piece.data, piece.bytes);
    }
    if (progress) progress(done, total);
    if (piece.at + piece.bytes < part.end || !problem.empty()) return;
    const Block& block = *part.block;
    const bool table = !block.chunk_xxh3.empty();
    if (hash->digest() != block.xxh3 || (table && hash->chunks() != block.chunk_xxh3))
      problem = fmt::format("hash is {:016x}, {:016x} was written", hash->digest(), block.xxh3);
  });
  for (std::size_t i = 0; i < parts.size(); ++i)
    if (!wrong[i].empty())
      problems.push_back({index.shard_files[static_cast<std::size_t>(parts[i].block->shard)],
                          parts[i].tensor->name, wrong[i]});
  return problems;
}

TensorStatistics CheckpointReader::statistics(const std::string& name) {
  const TensorEntry& tensor = impl_->find(name);
  RunningStatistics statistics;
  std::vector<Impl::Wanted> parts;
  for (const Block& block : tensor.blocks)
    parts.push_back({&tensor, &block, 0, bytes_of(tensor, block)});
  impl_->stream_checked(parts,
                        [&](std::size_t, const char* piece, std::int64_t, std::int64_t bytes) {
                          statistics.add(tensor.dtype, piece, bytes);
                        });
  return statistics.result();
}

}  // namespace longspan::io
