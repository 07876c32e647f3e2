/// The folder of a run: config.ini, metrics.jsonl, log.txt, checkpoints/ and .lock. One run at a
/// time may write into it.
#pragma once

#include <chrono>
#include <string>

#include "launcher/run_config.hpp"
#include "parallel/handle.hpp"

namespace longspan::launcher {

/// Holds the run directory against a second run, which would mix its checkpoints and metrics with
/// the first one's. Rank 0 has one. The lock goes with the process, however that ends; no lock file
/// is ever stale.
class RunDirectory {
 public:
  /// Makes the folder and locks it. A run that is being killed may hold it for a moment more: waits
  /// for `patience`. Throws Error if another run holds it, or if it cannot be written.
  explicit RunDirectory(const std::string& path,
                        std::chrono::milliseconds patience = std::chrono::seconds(5));
  /// config.ini: the effective configuration under a comment line. Throws Error.
  void write_config(const RunConfig& config, const std::string& comment) const;
  /// A small file of the folder; the old one stays whole until the new one is written. Throws
  /// Error.
  void write_file(const std::string& file_name, const std::string& text) const;

 private:
  static void close_file(int file);
  std::string path_;
  Handle<int, -1, close_file> lock_;
};

}  // namespace longspan::launcher
