#include "io/fasta.hpp"

#include <array>
#include <cstring>

#include "parallel/error.hpp"

namespace longspan::io {
namespace {

constexpr std::uint8_t kSkip = 0x80, kUnknown = 0xff;  // the high bit: not a plain letter

constexpr std::array<std::uint8_t, 256> make_table() {
  std::array<std::uint8_t, 256> table{};
  for (auto& entry : table) entry = kUnknown;
  for (std::size_t i = 0; i < kNucleotides.size(); ++i) {
    const auto letter = static_cast<unsigned char>(kNucleotides[i]);
    table[letter] = table[letter | 0x20] = static_cast<std::uint8_t>(i);
  }
  for (unsigned char space : {' ', '\t', '\r', '\v', '\f'}) table[space] = kSkip;
  return table;
}
constexpr std::array<std::uint8_t, 256> kTable = make_table();
constexpr std::uint8_t kN = 4;
static_assert(kNucleotides[kN] == 'N');

std::string printable(std::uint8_t byte) {
  return byte > 0x20 && byte < 0x7f ? fmt::format("'{}'", static_cast<char>(byte))
                                    : fmt::format("byte 0x{:02x}", byte);
}

constexpr std::size_t kFlush = 1 << 20;

}  // namespace

FastaParser::FastaParser(const InputFile& file, bool unknown_as_n, DocumentSink& sink,
                         InputCounts& counts)
    : file_(file), unknown_as_n_(unknown_as_n), sink_(sink), counts_(counts) {
  ids_.reserve(2 * kFlush);
}

void FastaParser::feed(std::span<const std::uint8_t> bytes) {
  const std::uint8_t* at = bytes.data();
  const std::uint8_t* const end = at + bytes.size();
  while (at != end && !sink_.full()) {
    if (place_ == Place::kLineBegin) {
      if (*at == '>') {
        end_record();
        header_.clear();
        record_line_ = line_;
        place_ = Place::kHeader;
        ++at;
        continue;
      }
      place_ = *at == ';' ? Place::kComment : Place::kSequence;
    }
    const auto* newline =
        static_cast<const std::uint8_t*>(std::memchr(at, '\n', static_cast<std::size_t>(end - at)));
    const std::uint8_t* stop = newline ? newline : end;
    if (place_ == Place::kHeader) {
      // A header line of more than a few KiB is not one; keep what a message can show.
      const auto room =
          std::min<std::ptrdiff_t>(stop - at, 4096 - static_cast<std::ptrdiff_t>(header_.size()));
      if (room > 0)
        header_.append(reinterpret_cast<const char*>(at), static_cast<std::size_t>(room));
    } else if (place_ == Place::kSequence && stop != at) {
      sequence({at, stop});
    }
    at = stop;
    if (!newline) break;
    if (place_ == Place::kHeader) begin_record();
    place_ = Place::kLineBegin;
    ++line_;
    ++at;
  }
}

void FastaParser::finish() {
  if (place_ == Place::kHeader && !sink_.full()) begin_record();
  end_record();
}

void FastaParser::begin_record() {
  const std::size_t begin = header_.find_first_not_of(" \t");
  const std::size_t end = header_.find_first_of(" \t\r", begin == std::string::npos ? 0 : begin);
  header_ = begin == std::string::npos
                ? ""
                : header_.substr(begin, end == std::string::npos ? end : end - begin);
  in_record_ = true;
  letters_ = 0;
  sink_.begin_document(file_.name + ":" + header_);
}

void FastaParser::end_record() {
  if (!in_record_) return;
  flush();
  if (letters_ == 0 && !sink_.full())
    fail_damaged("{}: line {}: record '{}' has no letters: complete it or take it out", file_.path,
                 record_line_, header_);
  sink_.end_document();
  in_record_ = false;
}

void FastaParser::flush() {
  if (!ids_.empty())
    sink_.tokens({ids_.data(), DType::kU8, static_cast<std::int64_t>(ids_.size())});
  ids_.clear();
}

void FastaParser::sequence(std::span<const std::uint8_t> bytes) {
  if (!in_record_) return sequence_with_oddities(bytes);
  const std::size_t old = ids_.size();
  ids_.resize(old + bytes.size());
  std::uint8_t* out = ids_.data() + old;
  std::uint8_t seen = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    out[i] = kTable[bytes[i]];
    seen |= out[i];
  }
  if (seen & 0x80) {
    ids_.resize(old);
    return sequence_with_oddities(bytes);
  }
  std::int64_t lower = 0;
  for (const std::uint8_t byte : bytes) lower += (byte >> 5) & 1;  // the case bit of letters
  counts_.lower_case += lower;
  letters_ += static_cast<std::int64_t>(bytes.size());
  if (ids_.size() >= kFlush) flush();
}

void FastaParser::sequence_with_oddities(std::span<const std::uint8_t> bytes) {
  for (const std::uint8_t byte : bytes) {
    std::uint8_t id = kTable[byte];
    if (id == kSkip) continue;
    if (!in_record_)
      fail_damaged("{}: line {}: {} stands before the first '>' header line: this is {}",
                   file_.path, line_, printable(byte),
                   byte == '@' && line_ == 1 ? "FASTQ, not FASTA; convert it first (seqtk seq -a)"
                                             : "not a FASTA file");
    ++letters_;
    if (id == kUnknown) {
      if (!unknown_as_n_)
        fail_damaged(
            "{}: line {}: record '{}', position {}: {} is not a nucleotide ({}): mend the file, or "
            "read such letters as N with "
            "--unknown n",
            file_.path, line_, header_, letters_, printable(byte), kNucleotides);
      ++counts_.unknown;
      id = kN;
    } else {
      counts_.lower_case += (byte >> 5) & 1;
    }
    ids_.push_back(id);
  }
  if (ids_.size() >= kFlush) flush();
}

}  // namespace longspan::io
