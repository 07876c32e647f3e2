/// Documents of token ids out of input files: bytes of text, letters of FASTA records, ready-made
/// ids. The same reader runs twice over the input, first into a sink that counts, then into one
/// that writes, so nothing grows with the data. Read next: fasta.hpp, dataset_writer.hpp,
/// prepare_dataset.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "io/input_files.hpp"
#include "parallel/array.hpp"

namespace longspan::io {

enum class DatasetKind { kText, kGenome, kTokens };

struct DocumentFormat {
  DatasetKind kind = DatasetKind::kText;
  DType id_dtype = DType::kU16;  ///< tokens: width of the raw little-endian ids
  bool text_ids = false;         ///< tokens: decimal ids between white space instead
  bool unknown_as_n = false;     ///< genome: letters outside the alphabet become N
  /// tokens: neither text nor raw ids; every file says itself what it is (token_files.hpp)
  bool described_ids = false;
  std::optional<std::int64_t> document_start = {},
                              document_end = {};  ///< tokens: ids at borders; they stay
};

/// A run of token ids as they lie in memory: u8, u16 or u32.
struct TokenRun {
  const void* ids;
  DType dtype;
  std::int64_t count;
};

/// Receives documents one after the other. May throw to stop the reading.
class DocumentSink {
 public:
  virtual ~DocumentSink() = default;
  virtual void begin_document(const std::string& name) = 0;
  virtual void tokens(const TokenRun& run) = 0;
  virtual void end_document() = 0;
  /// True if lengths are enough: the reader may then call count_tokens() for contents it need not
  /// look at.
  virtual bool counts_only() const { return false; }
  virtual void count_tokens(std::int64_t) {}
  /// True once nothing more is wanted; the reader ends the document and returns.
  virtual bool full() const { return false; }
  /// Bytes of input files consumed since the last call.
  virtual void consumed(std::int64_t) {}
};

/// What a reader did to the input.
struct InputCounts {
  std::int64_t compressed_files = 0;
  std::int64_t lower_case = 0;  ///< genome letters (soft-masked repeats) folded to upper case
  std::int64_t unknown = 0;     ///< genome letters that became N
};

/// Feeds every document of `file` to `sink`. Throws Error: failed if it cannot be read, damaged if
/// its contents are not what `format` says, with file, document, place and the way out.
void read_documents(const InputFile& file, const DocumentFormat& format, DocumentSink& sink,
                    InputCounts& counts);

}  // namespace longspan::io
