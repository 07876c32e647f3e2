#include "io/token_dataset.hpp"

#include <algorithm>
#include <functional>
#include <optional>

#include "io/dataset_layout.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

constexpr std::int64_t kMostTableBytes = std::int64_t{16} << 30;  // two thousand million documents
constexpr std::int64_t kMostTokenizerBytes = std::int64_t{1} << 20;
constexpr std::int64_t kPiece =
    256 << 10;  // bytes read at a time: stays in the cache until it is widened

/// Widens ids and returns the largest: two loops the compiler vectorises.
template <class T>
std::uint32_t widen(const T* from, std::int64_t count, std::int32_t* to) {
  T largest = 0;
  for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, from[i]);
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<std::int32_t>(from[i]);
  return largest;
}

void check_identity(const hdf5::File& file) {
  const std::string& path = file.path();
  if (!file.has_attribute("/", "format"))
    fail_damaged(
        "{}: an HDF5 file, but not a Longspan dataset (no attribute 'format'): make one with "
        "longspan prepare",
        path);
  const std::string format = file.text_attribute("/", "format");
  if (format != kDatasetFormat)
    fail_damaged("{}: holds '{}', not a dataset ('{}'): make one with longspan prepare", path,
                 format, kDatasetFormat);
  const std::int64_t version = file.i64_attribute("/", "format_version");
  if (version != kDatasetVersion)
    fail_damaged(
        "{}: dataset format version {}, this program reads version {}: prepare the data again or "
        "use the program that "
        "wrote it",
        path, version, kDatasetVersion);
  const std::string kind = file.text_attribute("/", "kind");
  if (kind != "tokens")
    fail_damaged("{}: dataset of kind '{}', this program reads 'tokens'", path, kind);
}

hdf5::DatasetInfo table(const hdf5::File& file, const char* name, DType dtype, std::size_t dims) {
  if (!file.exists(name))
    fail_damaged("{}: dataset '{}' is missing: prepare the data again", file.path(), name);
  const hdf5::DatasetInfo info = file.info(name);
  if (info.dtype != dtype || info.shape.size() != dims)
    fail_damaged("{}: dataset '{}' is {} of shape {}, expected {} with {} dim(s)", file.path(),
                 name, info.type_text, to_string(info.shape), name_of(dtype), dims);
  file.require_plain(name, kMostTableBytes);
  return info;
}

std::uint64_t check_tokens(const hdf5::File& file, DatasetFacts& facts) {
  const std::string& path = file.path();
  if (!file.exists("tokens"))
    fail_damaged("{}: dataset 'tokens' is missing: prepare the data again", path);
  const hdf5::DatasetInfo info = file.info("tokens");
  if (info.shape.size() != 1 ||
      !(info.dtype == DType::kU8 || info.dtype == DType::kU16 || info.dtype == DType::kU32))
    fail_damaged("{}: 'tokens' is {} of shape {}, expected one dim of u8, u16 or u32", path,
                 info.type_text, to_string(info.shape));
  facts.dtype = *info.dtype;
  facts.tokens = info.shape[0];
  if (facts.tokens == 0) fail_damaged("{}: 'tokens' is empty: prepare the data again", path);
  if (!info.contiguous || info.is_virtual)
    fail_damaged(
        "{}: 'tokens' is chunked, compressed, virtual or external: it must be contiguous; h5repack "
        "-l tokens:CONTI, or "
        "prepare the data again",
        path);
  if (!info.offset)
    fail_damaged("{}: 'tokens' does not lie inside the file: it is truncated, or was never written",
                 path);
  facts.vocabulary = file.i64_attribute("tokens", "vocab_size");
  if (facts.vocabulary < 1 || facts.vocabulary > kLargestVocabulary)
    fail_damaged("{}: a vocabulary of {} is not between 1 and {}", path, facts.vocabulary,
                 kLargestVocabulary);
  return *info.offset;
}

void check_documents(const hdf5::File& file, DatasetFacts& facts) {
  const std::string& path = file.path();
  table(file, "doc_offsets", DType::kU64, 1);
  facts.document_offsets = file.read_u64("doc_offsets");
  const auto& offsets = facts.document_offsets;
  const auto tokens = static_cast<std::uint64_t>(facts.tokens);
  if (offsets.size() < 2 || offsets.front() != 0 || offsets.back() != tokens)
    fail_damaged(
        "{}: 'doc_offsets' ({} entries) must begin with 0 and end with the {} tokens: prepare the "
        "data again",
        path, offsets.size(), tokens);
  const auto descent = std::adjacent_find(offsets.begin(), offsets.end(), std::greater<>());
  if (descent != offsets.end())
    fail_damaged("{}: 'doc_offsets' falls from {} to {} at entry {}: prepare the data again", path,
                 descent[0], descent[1], descent - offsets.begin());
  const Shape shape = table(file, "splits", DType::kU64, 2).shape;
  if (shape != Shape{2, 2})
    fail_damaged("{}: 'splits' has shape {}, expected [2, 2]", path, to_string(shape));
  std::uint64_t ranges[4];
  file.read("splits", DType::kU64, ranges);
  const std::uint64_t documents = offsets.size() - 1;
  if (ranges[0] != 0 || ranges[1] != ranges[2] || ranges[1] > documents || ranges[3] != documents)
    fail_damaged(
        "{}: splits train [{}, {}) and valid [{}, {}) do not divide the {} documents in this order",
        path, ranges[0], ranges[1], ranges[2], ranges[3], documents);
  facts.train_documents = static_cast<std::int64_t>(ranges[1]);
}

std::vector<std::uint64_t> check_hashes(const hdf5::File& file, const DatasetFacts& facts) {
  const std::string& path = file.path();
  const std::int64_t expected =
      hash_blocks(facts.tokens * static_cast<std::int64_t>(size_of(facts.dtype)));
  const Shape shape = table(file, "block_xxh3", DType::kU64, 1).shape;
  if (shape[0] != expected)
    fail_damaged("{}: 'block_xxh3' has {} hashes, {} tokens need {}", path, shape[0], facts.tokens,
                 expected);
  auto hashes = file.read_u64("block_xxh3");
  // Other programs may name their datasets as they like; only version 8 says that the name is made
  // of the contents.
  if (facts.uuid.size() == 36 && facts.uuid[14] == '8') {
    const std::string uuid = content_uuid(facts, hashes);
    if (uuid != facts.uuid)
      fail_damaged(
          "{}: its tables (documents, splits, tokenizer, hashes) give the uuid {}, not {}: the "
          "file is damaged; prepare "
          "the data again",
          path, uuid, facts.uuid);
  }
  return hashes;
}

}  // namespace

struct TokenDataset::Impl {
  DatasetFacts facts;
  std::optional<RawFile> file;
  std::uint64_t offset = 0;
  std::vector<std::uint64_t> hashes;

  /// `bytes` bytes of the token array.
  void read_bytes(std::int64_t first, std::int64_t bytes, void* to) const {
    file->read(to, bytes, static_cast<std::int64_t>(offset) + first);
  }

  void check_range(std::int64_t first, std::int64_t count) const {
    if (first < 0 || count < 0 || first > facts.tokens - count)
      fail("{}: tokens [{}, {}) are outside the {} of the dataset", facts.path, first,
           first + count, facts.tokens);
  }

  [[noreturn]] void fail_vocabulary(std::int64_t first, const std::int32_t* ids) const {
    std::int64_t i = 0;
    while (static_cast<std::uint32_t>(ids[i]) < static_cast<std::uint32_t>(facts.vocabulary)) ++i;
    fail_damaged(
        "{}: token {} has the id {}, not below the vocabulary of {}: the file is damaged; prepare "
        "the data again",
        facts.path, first + i, static_cast<std::uint32_t>(ids[i]), facts.vocabulary);
  }

  template <class T>
  void read(std::int64_t first, std::int64_t count, std::int32_t* ids) const {
    constexpr std::int64_t piece = kPiece / static_cast<std::int64_t>(sizeof(T));
    thread_local std::vector<T> narrow(static_cast<std::size_t>(piece));
    while (count > 0) {
      const std::int64_t n = std::min(count, piece);
      read_bytes(first * static_cast<std::int64_t>(sizeof(T)),
                 n * static_cast<std::int64_t>(sizeof(T)), narrow.data());
      if (widen(narrow.data(), n, ids) >= static_cast<std::uint32_t>(facts.vocabulary))
        fail_vocabulary(first, ids);
      first += n;
      ids += n;
      count -= n;
    }
  }
};

TokenDataset::TokenDataset(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TokenDataset::TokenDataset(TokenDataset&&) noexcept = default;
TokenDataset& TokenDataset::operator=(TokenDataset&&) noexcept = default;
TokenDataset::~TokenDataset() = default;

DatasetTables read_dataset_tables(const hdf5::File& file) {
  DatasetTables tables;
  DatasetFacts& facts = tables.facts;
  facts.path = file.path();
  check_identity(file);
  facts.uuid = printable(file.text_attribute("/", "dataset_uuid"));
  facts.source = printable(file.text_attribute("/", "source"));
  facts.created_by = printable(file.text_attribute("/", "created_by"));
  tables.tokens_offset = check_tokens(file, facts);
  table(file, "tokenizer", DType::kU8, 1);
  file.require_plain("tokenizer", kMostTokenizerBytes);
  facts.tokenizer = file.read_text("tokenizer");
  try {
    const Tokenizer tokenizer(facts.tokenizer);
    if (facts.vocabulary > tokenizer.vocabulary())
      fail_damaged("its tokenizer knows {} ids, 'vocab_size' is {}", tokenizer.vocabulary(),
                   facts.vocabulary);
  } catch (const Error& error) {
    throw Error(file.path() + ": " + error.what(), error.status());
  }
  check_documents(file, facts);
  tables.hashes = check_hashes(file, facts);
  return tables;
}

TokenDataset TokenDataset::open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  DatasetTables tables = read_dataset_tables(hdf5::File::open(path));
  impl->facts = std::move(tables.facts);
  impl->offset = tables.tokens_offset;
  impl->hashes = std::move(tables.hashes);
  impl->file = RawFile::open(path, RawFile::Mode::kRead);
  return TokenDataset(std::move(impl));
}

const DatasetFacts& TokenDataset::facts() const {
  return impl_->facts;
}

std::int64_t TokenDataset::split_begin(Split split) const {
  const DatasetFacts& facts = impl_->facts;
  return split == Split::kTrain
             ? 0
             : static_cast<std::int64_t>(
                   facts.document_offsets[static_cast<std::size_t>(facts.train_documents)]);
}

std::int64_t TokenDataset::split_tokens(Split split) const {
  const std::int64_t train_end = split_begin(Split::kValid);
  return split == Split::kTrain ? train_end : impl_->facts.tokens - train_end;
}

void TokenDataset::read(std::int64_t first, std::int64_t count, std::int32_t* ids) const {
  impl_->check_range(first, count);
  switch (impl_->facts.dtype) {
    case DType::kU8:
      return impl_->read<std::uint8_t>(first, count, ids);
    case DType::kU16:
      return impl_->read<std::uint16_t>(first, count, ids);
    default:
      return impl_->read<std::uint32_t>(first, count, ids);
  }
}

void TokenDataset::read_documents(std::int64_t first, std::int64_t count,
                                  std::int32_t* documents) const {
  impl_->check_range(first, count);
  const auto& offsets = impl_->facts.document_offsets;
  auto next = std::upper_bound(offsets.begin(), offsets.end(), static_cast<std::uint64_t>(first));
  for (std::int64_t done = 0; done < count; ++next) {
    const std::int64_t end = std::min(static_cast<std::int64_t>(*next), first + count) - first;
    const auto document = static_cast<std::int32_t>(next - offsets.begin() - 1);
    std::fill(documents + done, documents + std::max(done, end), document);
    done = std::max(done, end);
  }
}

void TokenDataset::verify() const {
  const DatasetFacts& facts = impl_->facts;
  const std::int64_t bytes = facts.tokens * static_cast<std::int64_t>(size_of(facts.dtype));
  std::vector<char> block(static_cast<std::size_t>(std::min(bytes, kHashBlockBytes)));
  for (std::size_t i = 0; i < impl_->hashes.size(); ++i) {
    const std::int64_t begin = static_cast<std::int64_t>(i) * kHashBlockBytes;
    const std::int64_t count = std::min(kHashBlockBytes, bytes - begin);
    impl_->read_bytes(begin, count, block.data());
    const std::uint64_t found = xxh3(block.data(), static_cast<std::size_t>(count));
    if (found != impl_->hashes[i])
      fail_damaged(
          "{}: block {} of {} (bytes [{}, {}) of the file) has the hash {:016x}, expected {:016x}: "
          "the data are damaged; "
          "prepare them again",
          facts.path, i, impl_->hashes.size(), impl_->offset + static_cast<std::uint64_t>(begin),
          impl_->offset + static_cast<std::uint64_t>(begin + count), found, impl_->hashes[i]);
  }
}

}  // namespace longspan::io
