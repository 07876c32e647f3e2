/// Which checkpoint a run continues from, and which one when that turns out to be damaged.
#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// The newest checkpoint where `path` is a run directory or its checkpoints folder; otherwise
/// `path`, which may be a checkpoint.
std::string checkpoint_at(const std::string& path);

/// The same on every rank: rank 0 looks, the others hear of it.
class ResumeChoice {
 public:
  /// `resume`: the value of checkpoint.resume; `directory`: the run's checkpoints. Throws
  /// AgreedError: usage if the setting does not go with what is there, damaged if nothing there can
  /// be read. Collective.
  ResumeChoice(const std::string& resume, const std::string& directory, const Communicator& world);

  /// The checkpoint to read; empty: the run begins.
  const std::string& path() const { return path_; }
  /// path() is damaged, as `why` says (one line, the same on every rank): the next newest of the
  /// run's own takes its place. Throws AgreedError (damaged) naming all that were tried if there is
  /// none, or if the user has named this one. Collective.
  void reject(const std::string& why);
  /// path() has been read: warns of every newer one that could not be.
  void settle() const;

 private:
  void look(const std::string& resume);
  /// The first of candidates_ from next_ on that looks complete; empty if none does.
  std::string next_complete();

  const Communicator& world_;
  std::string directory_, path_;
  std::vector<std::string> candidates_;  ///< rank 0: the run's own, best first
  std::size_t next_ = 0;
  bool own_ = true;                   ///< path_ is one of the run's own
  std::vector<std::string> damages_;  ///< rank 0: why each one before path_ was not taken
};

}  // namespace longspan::launcher
