/// From files to a dataset: the whole of `longspan prepare` but its command line. The input is read
/// twice: a census of the documents decides sizes, token type and split, then the tokens go
/// straight to their place in the file. Memory does not grow with the tokens, only (by 16 bytes)
/// with the documents. The same input gives the same file, byte for byte. Read next:
/// document_input.hpp, dataset_writer.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "io/document_input.hpp"
#include "io/input_files.hpp"
#include "io/token_dataset.hpp"

namespace longspan::io {

struct PrepareRequest {
  DocumentFormat format;
  std::string output;
  std::vector<std::string> inputs;
  std::vector<std::string>
      endings;               ///< of files in folders; empty = all (genome: the usual ones of FASTA)
  double validation = 0.05;  ///< share of the tokens to set apart, in whole documents; 0 = none
  /// Instead: the last so many documents validate, all stay in their order.
  std::optional<std::int64_t> valid_documents;
  std::int64_t max_tokens = 0;  ///< stop after so many; 0 = no limit
  std::int64_t vocabulary = 0;  ///< tokens: 0 = largest id + 1
  bool skip_unreadable = false;
  bool replace = false;  ///< of an existing output
  std::string created_by;
};

struct PrepareSummary {
  DatasetFacts facts;
  InputFiles input;  ///< `files` is cleared
  std::int64_t input_files = 0;
  InputCounts counts;
  std::int64_t empty_documents = 0;  ///< left out
  bool capped = false;               ///< max_tokens cut the input short
  bool tail_split = false;           ///< one document: its tail became the validation split
  std::int64_t train_tokens = 0;
  std::int64_t file_bytes = 0;
  double seconds = 0;  ///< both passes
};

/// Called after every piece of work; may throw to stop, which removes what was written.
using PrepareProgress =
    std::function<void(const char* phase, std::int64_t done, std::int64_t total)>;

/// Throws Error: usage for arguments that make no sense together, damaged for input that is not
/// what it should be, failed for files and disks.
PrepareSummary prepare_dataset(const PrepareRequest& request, const PrepareProgress& progress);

/// Which documents validate: in the order of a hash of their names, each is taken that still fits
/// into `fraction` of the tokens; at least one if there are two or more and fraction > 0. Depends
/// on names and lengths alone.
std::vector<bool> choose_validation(const std::vector<std::int64_t>& tokens,
                                    const std::vector<std::uint64_t>& name_hashes, double fraction);

}  // namespace longspan::io
