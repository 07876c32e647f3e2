/// Checkpoints written while training goes on: a thread copies the blocks while the next step
/// computes its gradients, and writes the copy with a communicator of its own. Or in line, by the
/// thread that asks. Either way the bytes are the same, and come from write_checkpoint. Read next:
/// checkpoint.hpp. Blocks in memory of a device are always copied first.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "io/checkpoint.hpp"
#include "parallel/device.hpp"

namespace longspan::io {

class CheckpointSaver {
 public:
  /// How a save that was started has ended; the same on every rank.
  struct Outcome {
    std::int64_t step = 0;
    std::string path;     ///< empty if it failed
    std::string failure;  ///< what write_checkpoint or prune_checkpoints said, one line
    double seconds = 0;   ///< from start() to the end of the writing
    bool fenced = false;  ///< it failed since a later start of the run has taken over
    double waited = 0;    ///< seconds spent in wait_for_copy()
  };

  /// Saves into `directory`, whose parent exists, and keeps the `keep` newest there (0 = all).
  /// Collective over `comm`, which is duplicated: saves never meet the caller's own collectives.
  /// `fence`: rank 0's right to write there; outlives the saver.
  CheckpointSaver(std::string directory, std::int64_t keep, const Communicator& comm,
                  const Fence* fence = nullptr);
  /// Waits for a save that is under way. That ends: once start() has returned anywhere, every rank
  /// has its copy and a thread to write it.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  /// Allocates what start() copies these blocks into. Throws Error if there is no memory. Does not
  /// communicate.
  void reserve(const std::vector<ShardedArray>& arrays);

  /// Begins to copy the blocks (arguments as of write_checkpoint), then to write the copy, and
  /// returns. The blocks stay as they are until wait_for_copy(). Waits for the save before first:
  /// its outcome must have been taken, or is lost. Throws AgreedError if a rank has no memory for
  /// the copy. Collective.
  void start(const std::vector<ShardedArray>& arrays, CheckpointFacts facts);
  /// Returns when what start() was given may change: to be called before it does. Does not
  /// communicate.
  void wait_for_copy();
  /// Returns when nothing is being written. Throws what ended the writing if that is no Outcome (a
  /// failure that the ranks cannot agree about). Collective in effect: a save ends only when every
  /// rank has written.
  void wait();
  /// The outcome of what was started, once, when it is there; nothing before. Does not communicate:
  /// ranks may learn it at different moments. Throws as wait() does.
  std::optional<Outcome> take();

  /// Saves in line, after what is under way. Returns the path; throws AgreedError. Collective.
  std::string save(const std::vector<ShardedArray>& arrays, const CheckpointFacts& facts);

  /// Bytes reserved.
  std::int64_t staging_bytes() const { return staging_.size(); }

 private:
  /// Into staging_, where they are from then on.
  void copy_blocks(std::vector<ShardedArray>& arrays);
  std::string write(const std::vector<ShardedArray>& arrays, const CheckpointFacts& facts);
  void work();

  const std::string directory_;
  const std::int64_t keep_;
  const Fence* const fence_;
  const Communicator comm_;  ///< used by one thread at a time: by the writer while busy_
  Buffer<char> staging_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool busy_ = false, copying_ = false, stop_ = false;
  std::vector<ShardedArray> arrays_;  ///< of what is being written; once copied, in staging_
  CheckpointFacts facts_;
  std::optional<Outcome> outcome_;
  double waited_ = 0;
  std::exception_ptr broken_;
  std::thread thread_;
};

}  // namespace longspan::io
