#include "io/document_input.hpp"

#include <charconv>
#include <limits>
#include <vector>

#include "io/byte_source.hpp"
#include "io/fasta.hpp"
#include "io/file.hpp"
#include "io/token_files.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

constexpr std::size_t kBlock = 1 << 20;

/// Reads blocks and tells the sink how far the file on disk has been consumed.
class Blocks {
 public:
  Blocks(ByteSource& source, DocumentSink& sink) : source_(source), sink_(sink), block_(kBlock) {}
  /// The next block, kBlock bytes unless it is the last; empty at the end.
  std::span<std::uint8_t> next() {
    const std::size_t got = source_.read(block_);
    sink_.consumed(source_.file_position() - told_);
    told_ = source_.file_position();
    return {block_.data(), got};
  }

 private:
  ByteSource& source_;
  DocumentSink& sink_;
  std::vector<std::uint8_t> block_;
  std::int64_t told_ = 0;
};

void read_text(const InputFile& file, ByteSource& source, DocumentSink& sink) {
  sink.begin_document(file.name);
  if (sink.counts_only() && !source.compressed()) {
    sink.count_tokens(source.file_bytes());
    sink.consumed(source.file_bytes());
  } else {
    Blocks blocks(source, sink);
    for (auto block = blocks.next(); !block.empty() && !sink.full(); block = blocks.next())
      sink.tokens({block.data(), DType::kU8, static_cast<std::int64_t>(block.size())});
  }
  sink.end_document();
}

void read_raw_ids(const InputFile& file, DType dtype, ByteSource& source, DocumentSink& sink) {
  const std::size_t width = size_of(dtype);
  sink.begin_document(file.name);
  Blocks blocks(source, sink);
  std::int64_t total = 0;
  // A block is a multiple of every width, and only the last one is short.
  for (auto block = blocks.next(); !block.empty() && !sink.full(); block = blocks.next()) {
    total += static_cast<std::int64_t>(block.size());
    if (block.size() % width != 0)
      fail_damaged(
          "{}: {} bytes are not a whole number of {} ids: give --dtype as the file was written "
          "(u8, u16, u32)",
          file.path, total, name_of(dtype));
    sink.tokens({block.data(), dtype, static_cast<std::int64_t>(block.size() / width)});
  }
  sink.end_document();
}

void read_text_ids(const InputFile& file, ByteSource& source, DocumentSink& sink) {
  sink.begin_document(file.name);
  Blocks blocks(source, sink);
  std::vector<std::uint32_t> ids;
  std::string word;  // of the number that the end of a block cut
  std::int64_t line = 1;
  const auto finish_word = [&] {
    if (word.empty()) return;
    std::uint32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size())
      fail_damaged(
          "{}: line {}: '{}' is not a token id: expected decimal numbers from 0 to {} between "
          "white space",
          file.path, line, word.substr(0, 40), std::numeric_limits<std::int32_t>::max() - 1);
    ids.push_back(id);
    word.clear();
  };
  for (auto block = blocks.next(); !block.empty() && !sink.full(); block = blocks.next()) {
    for (const std::uint8_t byte : block) {
      const bool space = byte == ' ' || (byte >= '\t' && byte <= '\r');
      if (!space) {
        if (word.size() < 64) word.push_back(static_cast<char>(byte));
        continue;
      }
      finish_word();
      line += byte == '\n';
    }
    sink.tokens({ids.data(), DType::kU32, static_cast<std::int64_t>(ids.size())});
    ids.clear();
  }
  if (!sink.full()) finish_word();
  if (!ids.empty()) sink.tokens({ids.data(), DType::kU32, static_cast<std::int64_t>(ids.size())});
  sink.end_document();
}

void read_genome(const InputFile& file, bool unknown_as_n, ByteSource& source, DocumentSink& sink,
                 InputCounts& counts) {
  FastaParser parser(file, unknown_as_n, sink, counts);
  Blocks blocks(source, sink);
  for (auto block = blocks.next(); !block.empty() && !sink.full(); block = blocks.next())
    parser.feed(block);
  parser.finish();
}

}  // namespace

namespace {

/// Ids in a file with a header, or raw ones that are to be cut into documents.
void read_described_ids(const InputFile& file, const DocumentFormat& format, DocumentSink& sink) {
  const DocumentBorders borders{format.document_start, format.document_end};
  if (!format.described_ids && ByteSource(file.path).compressed())
    fail_damaged("{}: is gzip: unpack it to look for --document-start or --document-end",
                 file.path);
  if (!format.described_ids)
    return read_token_file(file.path, file.name, TokenFileFormat::kRaw, format.id_dtype, borders,
                           sink);
  const auto kind = detect_token_file(file.path);
  if (!kind)
    fail_damaged(
        "{}: neither NumPy, Megatron nor llm.c, and without --dtype it must be one: give --dtype "
        "u8, u16 or u32 for raw ids, --text-ids for decimal numbers",
        file.path);
  read_token_file(file.path, file.name, *kind, format.id_dtype, borders, sink);
}

}  // namespace

void read_documents(const InputFile& file, const DocumentFormat& format, DocumentSink& sink,
                    InputCounts& counts) {
  if (format.kind == DatasetKind::kTokens &&
      (format.described_ids || format.document_start || format.document_end) && !format.text_ids)
    return read_described_ids(file, format, sink);
  ByteSource source(file.path);
  counts.compressed_files += source.compressed();
  switch (format.kind) {
    case DatasetKind::kText:
      return read_text(file, source, sink);
    case DatasetKind::kGenome:
      return read_genome(file, format.unknown_as_n, source, sink, counts);
    case DatasetKind::kTokens:
      return format.text_ids ? read_text_ids(file, source, sink)
                             : read_raw_ids(file, format.id_dtype, source, sink);
  }
}

}  // namespace longspan::io
