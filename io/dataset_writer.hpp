/// Writes a dataset file (FORMAT.md, section 1): HDF5 makes the layout, pwrite fills it. Read next:
/// prepare_dataset.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "io/document_input.hpp"
#include "io/token_dataset.hpp"

namespace longspan::io {

/// The file exists under its name only after finish(), complete and on disk; until then it is
/// `<path>.partial`, which the destructor removes. Holds two buffers of 16 MiB, whatever the size
/// of the data.
class DatasetWriter {
 public:
  /// `facts`: everything but path and uuid. Reserves the disk space. Throws Error (failed) with the
  /// bytes needed and available if it does not suffice, or if the folder cannot be written.
  DatasetWriter(const std::string& path, DatasetFacts facts);
  ~DatasetWriter();
  DatasetWriter(const DatasetWriter&) = delete;
  DatasetWriter& operator=(const DatasetWriter&) = delete;

  /// The next tokens of a split; the two splits may alternate. Ids are below the vocabulary (not
  /// checked). Throws Error (failed) when the disk fills up, or for more tokens than the facts say.
  void append(Split split, const TokenRun& run);
  /// Throws Error (failed) if tokens are missing. Returns the facts with path and uuid.
  DatasetFacts finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Bytes of a dataset file, within a few KiB.
std::int64_t dataset_file_bytes(const DatasetFacts& facts);

}  // namespace longspan::io
