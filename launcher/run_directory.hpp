/// The folder of a run: config.ini, metrics.jsonl, log.txt, checkpoints/ and .lock. One run at a
/// time may write into it.
#pragma once

#include <chrono>
#include <string>

#include "io/fence.hpp"
#include "launcher/run_config.hpp"
#include "parallel/handle.hpp"

namespace longspan::launcher {

/// This process as a start of the run: the Slurm job and its restart count, and those of a
/// supervisor that has started it, which says so in the environment:
/// LONGSPAN_LAUNCH=<its host:process>:<restart>.
io::Attempt this_attempt();

/// Holds the run directory against a second run, which would mix its checkpoints and metrics with
/// the first one's. Rank 0 has one. The lock goes with the process, however that ends; no lock file
/// is ever stale. But its holder may live on a node that is cut off, or a network file system may
/// keep the lock of a node that is dead: a later restart of the holder's own job waits for
/// `patience`, then puts a lock file of its own in the place of the old one. Nobody else may. The
/// old holder, if it lives, is kept from the checkpoints by io/fence.hpp; so is one whose lock a
/// file system has lost.
class RunDirectory {
 public:
  /// Makes the folder and locks it. A run that is being killed may hold it for a moment more: waits
  /// for `patience`. Throws Error if another run holds it, or if it cannot be written. Says so in a
  /// warning when it takes over.
  explicit RunDirectory(const std::string& path, const io::Attempt& attempt = this_attempt(),
                        std::chrono::milliseconds patience = std::chrono::seconds(5));
  /// A run that was refused before it began leaves no folder behind: goes if it was made here and
  /// holds nothing but the lock and the watchdog's folder.
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;
  /// config.ini: the effective configuration under a comment line. Throws Error.
  void write_config(const RunConfig& config, const std::string& comment) const;
  /// A small file of the folder; the old one stays whole until the new one is written. Throws
  /// Error.
  void write_file(const std::string& file_name, const std::string& text) const;

 private:
  static void close_file(int file);
  using File = Handle<int, -1, close_file>;
  void replace_lock(const io::Attempt& attempt);
  std::string path_;
  bool made_ = false;
  File lock_;
};

}  // namespace longspan::launcher
