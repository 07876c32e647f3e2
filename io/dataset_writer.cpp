#include "io/dataset_writer.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "io/dataset_layout.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

template <class From, class To>
void convert(const void* from, std::int64_t count, void* to) {
  const auto* in = static_cast<const From*>(from);
  auto* out = static_cast<To*>(to);
  for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<To>(in[i]);
}

template <class From>
void convert(const void* from, std::int64_t count, DType dtype, void* to) {
  if (dtype == DType::kU8) return convert<From, std::uint8_t>(from, count, to);
  if (dtype == DType::kU16) return convert<From, std::uint16_t>(from, count, to);
  convert<From, std::uint32_t>(from, count, to);
}

void convert(const void* from, DType from_dtype, std::int64_t count, DType dtype, void* to) {
  if (from_dtype == DType::kU8) return convert<std::uint8_t>(from, count, dtype, to);
  if (from_dtype == DType::kU16) return convert<std::uint16_t>(from, count, dtype, to);
  convert<std::uint32_t>(from, count, dtype, to);
}

}  // namespace

std::int64_t dataset_file_bytes(const DatasetFacts& facts) {
  const std::int64_t token_bytes = facts.tokens * static_cast<std::int64_t>(size_of(facts.dtype));
  const auto offsets = static_cast<std::int64_t>(facts.document_offsets.size()) * 8;
  return token_bytes + offsets + hash_blocks(token_bytes) * 8 + (128 << 10);
}

struct DatasetWriter::Impl {
  /// One split: bytes [begin, end) of the token array, of which those before `next` are in the file
  /// and `filled` more in the buffer, which ends at a border of the hash blocks.
  struct Stream {
    std::int64_t next = 0, end = 0;
    std::size_t filled = 0;
    std::vector<std::uint8_t> buffer;
  };

  std::string path, partial;
  DatasetFacts facts;
  std::int64_t width, token_bytes;
  std::uint64_t tokens_offset = 0, hashes_offset = 0;
  Descriptor file;
  Stream streams[2];
  std::vector<std::uint64_t> hashes;
  std::vector<bool> hashed;
  bool renamed = false;

  Impl(const std::string& path_, DatasetFacts facts_)
      : path(path_), partial(path_ + ".partial"), facts(std::move(facts_)) {
    facts.path = path;
    width = static_cast<std::int64_t>(size_of(facts.dtype));
    token_bytes = facts.tokens * width;
    hashes.resize(static_cast<std::size_t>(hash_blocks(token_bytes)));
    hashed.resize(hashes.size());
    const auto train_end =
        static_cast<std::int64_t>(
            facts.document_offsets[static_cast<std::size_t>(facts.train_documents)]) *
        width;
    streams[0].end = streams[1].next = train_end;
    streams[1].end = token_bytes;
    for (Stream& stream : streams)
      stream.buffer.resize(
          static_cast<std::size_t>(std::min(kHashBlockBytes, stream.end - stream.next)));
    check_space();
    try {
      make_layout();
      open_partial();
    } catch (...) {
      ::unlink(partial.c_str());
      throw;
    }
  }

  ~Impl() {
    if (!renamed) ::unlink(partial.c_str());
  }

  [[noreturn]] void fail_full(int error) {
    fail(
        "{}: {}: the dataset needs {} bytes, {} are available in {}: free some, write elsewhere "
        "with --output, or take less "
        "with --max-bytes; nothing was left behind",
        path, std::strerror(error), dataset_file_bytes(facts), free_bytes(partial),
        parent_path(path));
  }

  [[noreturn]] void fail_system(const char* what, int error) {
    if (error == ENOSPC || error == EDQUOT || error == EFBIG) fail_full(error);
    fail("{}: cannot {}: {}", partial, what, std::strerror(error));
  }

  void check_space() {
    if (!is_directory(parent_path(path)))
      fail("{}: cannot create: the folder {} does not exist", path, parent_path(path));
    if (free_bytes(partial) < dataset_file_bytes(facts)) fail_full(ENOSPC);
  }

  void make_layout() {
    ::unlink(partial.c_str());  // of a run that was killed
    const std::uint64_t documents = facts.document_offsets.size() - 1;
    const auto train = static_cast<std::uint64_t>(facts.train_documents);
    hdf5::File out = hdf5::File::create(partial);
    out.set_attribute("/", "format", kDatasetFormat);
    out.set_attribute("/", "format_version", kDatasetVersion);
    out.set_attribute("/", "kind", "tokens");
    out.set_attribute("/", "source", facts.source);
    out.set_attribute("/", "created_by", facts.created_by);
    tokens_offset = out.create_contiguous("tokens", facts.dtype, {facts.tokens});
    out.set_attribute("tokens", "vocab_size", facts.vocabulary);
    hashes_offset = out.create_contiguous("block_xxh3", DType::kU64, {hash_blocks(token_bytes)});
    out.write("doc_offsets", facts.document_offsets);
    // One table rather than a group of two: HDF5 dates groups, and equal input shall give equal
    // bytes.
    const std::uint64_t splits[4] = {0, train, train, documents};
    out.write("splits", DType::kU64, {2, 2}, splits);
    out.set_attribute("splits", "rows", "train, valid");
    out.write_text("tokenizer", facts.tokenizer);
    out.close();
  }

  void open_partial() {
    file = Descriptor(::open(partial.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file) fail_system("open", errno);
    // Reserves the space now: a disk that fills up later cannot stop the run half-way. Not every
    // file system can.
    if (::fallocate(file.get(), 0, static_cast<off_t>(tokens_offset), token_bytes) != 0 &&
        errno != EOPNOTSUPP && errno != ENOSYS)
      fail_system("reserve space", errno);
  }

  void write_at(const void* data, std::int64_t bytes, std::uint64_t offset) {
    const auto* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n =
          ::pwrite(file.get(), at, static_cast<std::size_t>(bytes), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_system("write", errno);
      at += n;
      bytes -= n;
      offset += static_cast<std::uint64_t>(n);
    }
  }

  void flush(Stream& stream) {
    const auto bytes = static_cast<std::int64_t>(stream.filled);
    if (bytes == 0) return;
    const std::uint64_t offset = tokens_offset + static_cast<std::uint64_t>(stream.next);
    write_at(stream.buffer.data(), bytes, offset);
    // Starts the disk on these pages, so that the fsync at the end finds little left to do.
    ::sync_file_range(file.get(), static_cast<off_t>(offset), bytes, SYNC_FILE_RANGE_WRITE);
    const std::int64_t block = stream.next / kHashBlockBytes;
    const std::int64_t block_end = std::min((block + 1) * kHashBlockBytes, token_bytes);
    if (stream.next % kHashBlockBytes == 0 && stream.next + bytes == block_end) {
      hashes[static_cast<std::size_t>(block)] = xxh3(stream.buffer.data(), stream.filled);
      hashed[static_cast<std::size_t>(block)] = true;
    }
    stream.next += bytes;
    stream.filled = 0;
  }

  void append(Split split, const TokenRun& run) {
    Stream& stream = streams[split == Split::kTrain ? 0 : 1];
    const auto* from = static_cast<const std::uint8_t*>(run.ids);
    const auto from_width = static_cast<std::int64_t>(size_of(run.dtype));
    if (stream.next + static_cast<std::int64_t>(stream.filled) + run.count * width > stream.end)
      fail(
          "{}: more tokens than were counted: the input changed while it was read; run prepare "
          "again",
          path);
    for (std::int64_t left = run.count; left > 0;) {
      const std::int64_t border =
          std::min((stream.next / kHashBlockBytes + 1) * kHashBlockBytes, stream.end);
      const std::int64_t room =
          (border - stream.next - static_cast<std::int64_t>(stream.filled)) / width;
      const std::int64_t count = std::min(left, room);
      convert(from, run.dtype, count, facts.dtype, stream.buffer.data() + stream.filled);
      stream.filled += static_cast<std::size_t>(count * width);
      if (count == room) flush(stream);
      from += count * from_width;
      left -= count;
    }
  }

  /// Only the block in which the splits meet: it was written from two buffers.
  void hash_again(std::size_t block) {
    const std::int64_t begin = static_cast<std::int64_t>(block) * kHashBlockBytes;
    std::vector<char> bytes(
        static_cast<std::size_t>(std::min(kHashBlockBytes, token_bytes - begin)));
    RawFile::open(partial, RawFile::Mode::kRead)
        .read(bytes.data(), static_cast<std::int64_t>(bytes.size()),
              static_cast<std::int64_t>(tokens_offset) + begin);
    hashes[block] = xxh3(bytes.data(), bytes.size());
  }

  DatasetFacts finish() {
    for (Stream& stream : streams) {
      flush(stream);
      if (stream.next != stream.end)
        fail(
            "{}: fewer tokens than were counted: the input changed while it was read; run prepare "
            "again",
            path);
    }
    for (std::size_t block = 0; block < hashes.size(); ++block)
      if (!hashed[block]) hash_again(block);
    write_at(hashes.data(), static_cast<std::int64_t>(hashes.size() * 8), hashes_offset);
    facts.uuid = content_uuid(facts, hashes);
    hdf5::File out = hdf5::File::update(partial);
    out.set_attribute("/", "dataset_uuid", facts.uuid);
    out.close();
    if (::fsync(file.get()) != 0) fail_system("fsync", errno);
    struct stat mine = {}, named = {};
    if (::fstat(file.get(), &mine) != 0 || ::stat(partial.c_str(), &named) != 0 ||
        mine.st_ino != named.st_ino)
      fail("{}: another prepare is writing the same output", partial);
    if (std::rename(partial.c_str(), path.c_str()) != 0) fail_system("rename", errno);
    renamed = true;
    sync_directory(parent_path(path));
    return facts;
  }
};

DatasetWriter::DatasetWriter(const std::string& path, DatasetFacts facts)
    : impl_(std::make_unique<Impl>(path, std::move(facts))) {}
DatasetWriter::~DatasetWriter() = default;
void DatasetWriter::append(Split split, const TokenRun& run) {
  impl_->append(split, run);
}
DatasetFacts DatasetWriter::finish() {
  return impl_->finish();
}

}  // namespace longspan::io
