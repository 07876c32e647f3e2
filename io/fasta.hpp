/// FASTA as token ids: every record is a document, every nucleotide a token. Read next:
/// document_input.hpp.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/document_input.hpp"

namespace longspan::io {

/// Token id = index in this text: the four bases, N, the ten other IUPAC ambiguity codes
/// (Cornish-Bowden 1985), RNA's U.
inline constexpr std::string_view kNucleotides = "ACGTNRYSWKMBDHVU";

/// Takes the bytes of one file in pieces of any size. Lower case is folded and counted; line ends
/// of any system, blank lines and ";" comment lines are passed over.
class FastaParser {
 public:
  FastaParser(const InputFile& file, bool unknown_as_n, DocumentSink& sink, InputCounts& counts);
  /// Throws Error (damaged) with file, line, record, letter and position for: letters before the
  /// first ">", records without letters, letters outside the alphabet (unless they become N).
  void feed(std::span<const std::uint8_t> bytes);
  /// The file has ended, or the sink is full.
  void finish();

 private:
  enum class Place { kLineBegin, kHeader, kComment, kSequence };

  void begin_record();
  void end_record();
  void sequence(std::span<const std::uint8_t> bytes);
  void sequence_with_oddities(std::span<const std::uint8_t> bytes);
  void flush();

  const InputFile& file_;
  const bool unknown_as_n_;
  DocumentSink& sink_;
  InputCounts& counts_;
  Place place_ = Place::kLineBegin;
  std::string header_;  // of the record at hand
  bool in_record_ = false;
  std::int64_t line_ = 1;
  std::int64_t record_line_ = 0;
  std::int64_t letters_ = 0;       // of the record so far
  std::vector<std::uint8_t> ids_;  // not yet given to the sink
};

}  // namespace longspan::io
