/// Who may write checkpoints into a folder: the newest start of the run, and nobody else.
///
/// The danger: a node is cut off from the network but goes on computing. Slurm (or launch) starts
/// the run again elsewhere; then the old ranks, which know nothing of it, publish a checkpoint over
/// the new run's, or delete one that it needs. A lock does not help: a network file system gives
/// the lock of a silent client away, or keeps it for a dead one for ever. Asking "am I still the
/// owner?" before each rename leaves a gap between the answer and the rename.
///
/// So the right to write is a folder, `<checkpoints>/.owner-0000000007/`, and every change of the
/// run's checkpoints is one rename into it or out of it:
///   - publish: written as `.owner-7/step-0000000100.tmp`, renamed to `step-0000000100`. A rename
///     onto a checkpoint that exists fails;
///   - `latest`: a link made in `.owner-7/`, renamed over the old one;
///   - delete: `step-0000000050` is renamed into `.owner-7/`, and removed there.
/// A later start takes `.owner-8` (a rename onto a folder that exists and is not empty fails: no
/// two get the same number), then moves `.owner-7` away, empties it and removes it, and only then
/// looks which checkpoint is the newest. rename() is atomic, also on the server of a network file
/// system, so whatever start 7 tries comes either before that, and start 8 sees it, or fails for
/// want of its folder; a client that still has the folder's handle in a cache meets a folder that
/// no longer exists (ESTALE). Nothing has to be taken back and no clock is read. Numbers only rise:
/// the last owner's folder stays when the run ends, and what a killed one left half-written goes
/// with it.
///
/// What it relies on: atomic rename() within one folder, which every POSIX file system gives, and
/// that a listing shows other nodes' folders (NFS: at the latest after acdirmax, 60 s; a start that
/// did not see a newer one finds its own folder gone at its first save).
///
/// Read next: checkpoint_writer.cpp, and launcher/run_directory.hpp for who may take over when.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

namespace longspan::io {

/// One start of a run, as far as others must know it to tell which of two is the later one.
struct Attempt {
  std::string job = {};      ///< Slurm cluster and job id; empty without Slurm
  int restart = 0;           ///< how often Slurm has restarted that job
  std::string launch = {};   ///< the `longspan launch` that started it; empty without
  int launch_restart = 0;    ///< how often that has restarted it
  std::string process = {};  ///< "process 12 on node02", for people
};

/// Whether both belong to one job (or to one launch in it) and `a` was started after `b`: then `b`
/// is to be gone, whatever it believes. Pure.
bool is_later_restart(const Attempt& a, const Attempt& b);
/// "process 12 on node02 (restart 1 of Slurm job 7 of alps)".
std::string describe(const Attempt& attempt);
/// As text in a file, and back; what cannot be read is an attempt that has nothing to do with any
/// other.
std::string to_text(const Attempt& attempt);
Attempt attempt_from(const std::string& text);

/// The right of this start to write checkpoints into one folder. One rank has it; nothing here
/// communicates. Threads may share it.
class Fence {
 public:
  /// Takes the right from whoever had it. Makes `checkpoints` if need be. Throws Error if the owner
  /// is a later restart of the same job, or if another start overtakes this one at the same moment.
  /// Where the folder cannot be written the run may begin: require() tries again.
  Fence(const std::string& checkpoints, const Attempt& attempt);

  /// Where everything that is not finished, or about to be removed, belongs. Only after require().
  std::string folder() const;
  /// Whether a later start has taken over; once true it stays so. One look at the file system. A
  /// network file system may show the truth late: good for ending early, not for deciding whether
  /// to write; that is for rename() to find out.
  bool lost() const;
  /// Before a save. Throws Error, one line: that names the successor if the right is lost, that of
  /// the file system if it could not be taken and still cannot.
  void require() const;

 private:
  struct Claim {
    std::int64_t number = 0;  ///< 0 = not taken yet
    std::string folder, text;
  };
  Claim take() const;
  bool lost_now() const;

  const std::string checkpoints_;
  const Attempt attempt_;
  mutable std::mutex mutex_;  ///< the training thread looks while the saver's writes
  mutable Claim claim_;
  mutable bool lost_ = false;
};

/// Where `name` (a checkpoint's folder, or `latest`) is under a temporary name: in the fence's
/// folder, without a fence beside it.
std::string temporary_path(const std::string& checkpoints, const std::string& name,
                           const Fence* fence);

}  // namespace longspan::io
