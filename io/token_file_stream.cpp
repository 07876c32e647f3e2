/// The streaming half of token_files.hpp: a mebibyte at a time from and to the disk.
#include <algorithm>
#include <cstring>
#include <limits>

#include "io/dataset_layout.hpp"
#include "io/file.hpp"
#include "io/token_files.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

constexpr std::int64_t kPieceBytes = 1 << 20;
constexpr std::int64_t kPieceTokens = 1 << 18;

bool ends_with(const std::string& path, std::string_view ending) {
  return path.size() > ending.size() && path.ends_with(ending);
}

/// "x" of "x.bin" and of "x.idx".
std::string megatron_stem(const std::string& path) {
  return ends_with(path, ".bin") || ends_with(path, ".idx") ? path.substr(0, path.size() - 4)
                                                            : path;
}

std::string head_of(const RawFile& file) {
  std::string head(static_cast<std::size_t>(std::min(file.size(), kTokenHeaderBytes)), '\0');
  file.read(head.data(), static_cast<std::int64_t>(head.size()), 0);
  return head;
}

RawFile open_plain(const std::string& path) {
  if (path_exists(path) && !is_regular_file(path))
    fail_damaged("{}: is a folder, pipe or device, not a file of token ids", path);
  return RawFile::open(path, RawFile::Mode::kRead);
}

/// Ids of a type that the datasets do not have, as u32.
template <class T>
void widen(const char* bytes, std::int64_t count, std::uint32_t* ids, const std::string& path,
           std::int64_t first) {
  for (std::int64_t i = 0; i < count; ++i) {
    T id;
    std::memcpy(&id, bytes + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    bool fits = static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(kLargestVocabulary);
    if constexpr (std::is_signed_v<T>) fits = fits && id >= 0;
    if (!fits)
      fail_damaged("{}: token {} has the id {}: ids are from 0 to {}", path, first + i, id,
                   kLargestVocabulary - 1);
    ids[i] = static_cast<std::uint32_t>(id);
  }
}

/// Cuts one stream of ids into documents at the borders that are known or looked for.
class DocumentCutter {
 public:
  DocumentCutter(const std::string& name, const DocumentBorders& borders,
                 const std::vector<std::int64_t>& offsets, DocumentSink& sink)
      : name_(name), borders_(borders), offsets_(offsets), sink_(sink) {
    begin();
  }

  void take(const TokenRun& run) {
    switch (run.dtype) {
      case DType::kU8:
        return cut<std::uint8_t>(run);
      case DType::kU16:
        return cut<std::uint16_t>(run);
      default:
        return cut<std::uint32_t>(run);
    }
  }
  void finish() { sink_.end_document(); }

 private:
  bool one_document() const { return offsets_.size() <= 2 && !borders_.start && !borders_.end; }
  void begin() {
    // The only document of a file has its name, as those of other kinds do.
    sink_.begin_document(one_document() ? name_ : fmt::format("{}:{}", name_, number_));
  }
  void cut_here() {
    sink_.end_document();
    ++number_;
    begin();
  }
  template <class T>
  void cut(const TokenRun& run) {
    const T* const ids = static_cast<const T*>(run.ids);
    std::int64_t sent = 0;
    const auto send = [&](std::int64_t until) {
      if (until > sent) sink_.tokens({ids + sent, run.dtype, until - sent});
      sent = until;
    };
    for (std::int64_t i = 0; !one_document() && i < run.count; ++i, ++position_) {
      while (next_ < offsets_.size() && offsets_[next_] <= position_) {
        const bool border = next_ > 0;
        ++next_;
        if (!border) continue;
        send(i);
        cut_here();
      }
      if (borders_.start && ids[i] == *borders_.start && position_ > 0) {
        send(i);
        cut_here();
      }
      if (borders_.end && ids[i] == *borders_.end) {
        send(i + 1);
        cut_here();
      }
    }
    send(run.count);
  }

  const std::string& name_;
  const DocumentBorders& borders_;
  const std::vector<std::int64_t>& offsets_;  ///< empty: not known
  DocumentSink& sink_;
  std::int64_t position_ = 0, number_ = 0;
  std::size_t next_ = 0;
};

void read_array(const RawFile& file, const TokenArray& array, DocumentCutter& cutter,
                const DocumentSink& sink, const std::function<void(std::int64_t)>& consumed) {
  const std::int64_t piece = kPieceBytes / array.width;
  std::vector<char> bytes(static_cast<std::size_t>(kPieceBytes));
  const bool as_it_is = !array.is_signed && array.width <= 2;
  std::vector<std::uint32_t> ids(as_it_is ? 0 : static_cast<std::size_t>(piece));
  for (std::int64_t first = 0; first < array.tokens && !sink.full(); first += piece) {
    const std::int64_t count = std::min(piece, array.tokens - first);
    file.read(bytes.data(), count * array.width, array.offset + first * array.width);
    const auto widen_as = [&](auto type) {
      widen<decltype(type)>(bytes.data(), count, ids.data(), file.path(), first);
      cutter.take({ids.data(), DType::kU32, count});
    };
    if (as_it_is)
      cutter.take({bytes.data(), array.width == 1 ? DType::kU8 : DType::kU16, count});
    else if (array.width == 1)
      widen_as(std::int8_t{});
    else if (array.width == 2)
      widen_as(std::int16_t{});
    else if (array.width == 4 && array.is_signed)
      widen_as(std::int32_t{});
    else if (array.width == 4)
      widen_as(std::uint32_t{});
    else if (array.is_signed)
      widen_as(std::int64_t{});
    else
      widen_as(std::uint64_t{});
    consumed(count * array.width);
  }
}

}  // namespace

std::optional<TokenFileFormat> detect_token_file(const std::string& path) {
  if (!is_regular_file(path)) return std::nullopt;
  const std::string head = head_of(RawFile::open(path, RawFile::Mode::kRead));
  if (head.starts_with("\x93NUMPY")) return TokenFileFormat::kNpy;
  if (head.starts_with("MMIDIDX")) return TokenFileFormat::kMegatron;
  if (ends_with(path, ".bin") && is_regular_file(megatron_stem(path) + ".idx"))
    return TokenFileFormat::kMegatron;
  for (const char* magic : {"\x88\xd8\x34\x01", "\xa1\xd9\x34\x01"})  // 20240520, 20240801
    if (head.starts_with(magic)) return TokenFileFormat::kLlmc;
  return std::nullopt;
}

void read_token_file(const std::string& path, const std::string& name, TokenFileFormat format,
                     DType raw_dtype, const DocumentBorders& borders, DocumentSink& sink) {
  const std::string data_path =
      format == TokenFileFormat::kMegatron ? megatron_stem(path) + ".bin" : path;
  const RawFile file = open_plain(data_path);
  MegatronIndex index;
  TokenArray& array = index.array;
  switch (format) {
    case TokenFileFormat::kNpy:
      array = parse_npy_header(path, head_of(file), file.size());
      break;
    case TokenFileFormat::kLlmc:
      array = parse_llmc_header(path, head_of(file), file.size());
      break;
    case TokenFileFormat::kMegatron: {
      const RawFile idx = open_plain(megatron_stem(path) + ".idx");
      index = parse_megatron_index(
          idx.path(),
          [&](void* to, std::int64_t bytes, std::int64_t at) { idx.read(to, bytes, at); },
          idx.size(), file.size());
      break;
    }
    case TokenFileFormat::kRaw:
      array = {0, 0, static_cast<int>(size_of(raw_dtype)), false};
      array.tokens = file.size() / array.width;
      if (file.size() % array.width != 0)
        fail_damaged(
            "{}: {} bytes are not a whole number of {} ids: give --dtype as the file was "
            "written (u8, u16, u32)",
            path, file.size(), name_of(raw_dtype));
      break;
  }
  DocumentCutter cutter(name, borders, index.document_offsets, sink);
  read_array(file, array, cutter, sink, [&](std::int64_t bytes) { sink.consumed(bytes); });
  cutter.finish();
}

namespace {

/// A file that gets its name only when all of it is on disk.
class NewFile {
 public:
  NewFile(std::string path, std::int64_t bytes)
      : path_(std::move(path)), partial_(path_ + ".partial") {
    remove_path(partial_);
    require_free_space(partial_, bytes, "the file");
    file_.emplace(RawFile::create(partial_));
    file_->reserve(bytes);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (file_) {
      file_.reset();
      ::remove(partial_.c_str());
    }
  }
  void append(const void* data, std::int64_t bytes) {
    file_->write(data, bytes, written_);
    written_ += bytes;
  }
  void sync() { file_->sync(); }
  void name() {
    file_->close();
    rename_path(partial_, path_);
    file_.reset();
    sync_directory(parent_path(path_));
  }

 private:
  std::string path_, partial_;
  std::optional<RawFile> file_;
  std::int64_t written_ = 0;
};

std::string npy_header(std::int64_t tokens, int width) {
  std::string text = fmt::format("{{'descr': '{}u{}', 'fortran_order': False, 'shape': ({},), }}",
                                 width == 1 ? '|' : '<', width, tokens);
  // The data begin at a multiple of 64; the header ends with a newline.
  text.append((64 - (10 + text.size() + 1) % 64) % 64, ' ');
  text += '\n';
  std::string head("\x93NUMPY\x01\x00", 8);
  head += static_cast<char>(text.size() & 0xff);
  head += static_cast<char>(text.size() >> 8);
  return head + text;
}

template <class T>
void append_number(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string llmc_header(std::int64_t tokens, int width) {
  std::string head;
  append_number<std::int32_t>(head, width == 2 ? 20240520 : 20240801);
  append_number<std::int32_t>(head, width == 2 ? 1 : 7);
  append_number<std::int32_t>(head, static_cast<std::int32_t>(tokens));
  head.resize(256 * 4, '\0');
  return head;
}

/// Documents [first, last) of the dataset, a sequence each.
void write_megatron_index(NewFile& file, const DatasetFacts& facts, std::size_t first,
                          std::size_t last, int width) {
  std::string out("MMIDIDX\0\0", 9);
  append_number<std::uint64_t>(out, 1);
  out += static_cast<char>(width == 1 ? 1 : width == 2 ? 8 : 4);
  append_number<std::uint64_t>(out, last - first);
  append_number<std::uint64_t>(out, last - first + 1);
  const auto flush = [&](std::size_t above) {
    if (out.size() <= above) return;
    file.append(out.data(), static_cast<std::int64_t>(out.size()));
    out.clear();
  };
  const auto& offsets = facts.document_offsets;
  for (std::size_t d = first; d < last; ++d, flush(kPieceBytes))
    append_number<std::int32_t>(out, static_cast<std::int32_t>(offsets[d + 1] - offsets[d]));
  for (std::size_t d = first; d < last; ++d, flush(kPieceBytes))
    append_number<std::int64_t>(out,
                                static_cast<std::int64_t>(offsets[d] - offsets[first]) * width);
  for (std::size_t d = first; d <= last; ++d, flush(kPieceBytes))
    append_number<std::int64_t>(out, static_cast<std::int64_t>(d - first));
  flush(0);
}

int width_for(const TokenFileRequest& request, const DatasetFacts& facts) {
  const int own = facts.vocabulary <= 256 ? 1 : facts.vocabulary <= 65536 ? 2 : 4;
  if (request.dtype) {
    const int asked = static_cast<int>(size_of(*request.dtype));
    if (request.format == TokenFileFormat::kLlmc || request.format == TokenFileFormat::kMegatron)
      fail_usage("--dtype is for raw and .npy files: {} has its own types",
                 name_of(request.format));
    if (asked < own)
      fail_usage("--dtype {} cannot hold the vocabulary of {} ids of {}", name_of(*request.dtype),
                 facts.vocabulary, facts.path);
    return asked;
  }
  // What reads headerless files and llm.c's expects 16 bits or 32.
  const bool at_least_two =
      request.format == TokenFileFormat::kRaw || request.format == TokenFileFormat::kLlmc;
  return at_least_two ? std::max(own, 2) : own;
}

template <class T>
void narrow(const std::vector<std::int32_t>& ids, std::int64_t count, std::vector<char>& bytes) {
  for (std::int64_t i = 0; i < count; ++i) {
    const T id = static_cast<T>(ids[static_cast<std::size_t>(i)]);
    std::memcpy(bytes.data() + static_cast<std::size_t>(i) * sizeof(T), &id, sizeof(T));
  }
}

}  // namespace

TokenFileSummary write_token_file(const TokenDataset& dataset, const TokenFileRequest& request,
                                  const TokenFileProgress& progress) {
  const DatasetFacts& facts = dataset.facts();
  const int width = width_for(request, facts);
  const auto train = static_cast<std::size_t>(facts.train_documents);
  const std::size_t first = request.split == Split::kValid ? train : 0;
  const std::size_t last =
      request.split == Split::kTrain ? train : facts.document_offsets.size() - 1;
  const auto begin = static_cast<std::int64_t>(facts.document_offsets[first]);
  const auto end = static_cast<std::int64_t>(facts.document_offsets[last]);
  const std::int64_t tokens = end - begin;
  if (tokens == 0) fail_usage("{}: this split has no tokens", facts.path);
  const bool pair = request.format == TokenFileFormat::kMegatron;
  if (request.format == TokenFileFormat::kLlmc && tokens > std::numeric_limits<std::int32_t>::max())
    fail_usage(
        "{}: {} tokens: a file of llm.c counts them with 31 bits; write another format, or "
        "one split alone (--split)",
        facts.path, tokens);
  if (pair)
    for (std::size_t d = first; d < last; ++d)
      if (facts.document_offsets[d + 1] - facts.document_offsets[d] > 0x7fffffff)
        fail_usage(
            "{}: document {} has {} tokens: Megatron counts those of a sequence with 31 "
            "bits; write another format",
            facts.path, d, facts.document_offsets[d + 1] - facts.document_offsets[d]);

  TokenFileSummary summary;
  const std::string stem = megatron_stem(request.output);
  const std::string data_path = pair ? stem + ".bin" : request.output;
  const std::string index_path = stem + ".idx";
  summary.files = {data_path};
  if (pair) summary.files.push_back(index_path);
  for (const std::string& file : summary.files) {
    if (is_directory(file)) fail_usage("{}: is a folder, expected a file name", file);
    if (path_exists(file) && !request.replace)
      fail_usage("{}: exists already: write elsewhere, or overwrite it with --force", file);
  }
  std::string head;
  if (request.format == TokenFileFormat::kNpy) head = npy_header(tokens, width);
  if (request.format == TokenFileFormat::kLlmc) head = llmc_header(tokens, width);
  const auto head_bytes = static_cast<std::int64_t>(head.size());
  NewFile out(data_path, head_bytes + tokens * width);
  out.append(head.data(), head_bytes);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(tokens, kPieceTokens)));
  std::vector<char> bytes(ids.size() * static_cast<std::size_t>(width));
  for (std::int64_t at = 0; at < tokens; at += kPieceTokens) {
    const std::int64_t count = std::min(kPieceTokens, tokens - at);
    dataset.read(begin + at, count, ids.data());
    if (width == 1)
      narrow<std::uint8_t>(ids, count, bytes);
    else if (width == 2)
      narrow<std::uint16_t>(ids, count, bytes);
    else
      narrow<std::uint32_t>(ids, count, bytes);
    out.append(bytes.data(), count * width);
    progress(at + count, tokens);
  }
  out.sync();
  summary.bytes = head_bytes + tokens * width;
  if (pair) {
    const auto documents = static_cast<std::int64_t>(last - first);
    NewFile index(index_path, 34 + documents * 20 + 8);
    write_megatron_index(index, facts, first, last, width);
    index.sync();
    // An index never stands next to tokens that are not its own: the old one goes first, the new
    // one comes last.
    remove_path(index_path);
    out.name();
    index.name();
    summary.bytes += 34 + documents * 20 + 8;
  } else {
    out.name();
  }
  summary.tokens = tokens;
  summary.documents = static_cast<std::int64_t>(last - first);
  summary.dtype = pair && width == 4 ? "i32" : fmt::format("u{}", 8 * width);
  return summary;
}

}  // namespace longspan::io
