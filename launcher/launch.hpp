/// Starting ranks on this machine with mpirun, and standing between them and the user: a wish to
/// stop goes in, one exit status and one error line come out. What Open MPI 4.1 does by itself, and
/// why it is not enough, is in launch.cpp.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace longspan::launcher {

/// What the ranks may run on.
struct Cores {
  int count = 1;    ///< physical cores in this process's affinity mask
  bool all = true;  ///< no processor of the machine is outside the mask
};
Cores usable_cores();

/// Environment and words of the command that starts the ranks.
struct MpirunCommand {
  std::vector<std::pair<std::string, std::string>>
      environment;  ///< set unless the user has set them
  std::vector<std::string> words;
};

/// `program arguments...` on `ranks` ranks. On one node every rank is bound to cores / ranks cores
/// of its own; where ranks outnumber cores none is bound and waiting ranks yield. `several_nodes`:
/// an allocation whose nodes and network mpirun knows better. Pure.
MpirunCommand mpirun_command(int ranks, const Cores& cores, bool root, bool several_nodes,
                             const std::string& program, const std::vector<std::string>& arguments);

/// As a person would type it.
std::string shell_text(const MpirunCommand& command);

/// Runs the command and waits for it. SIGINT, SIGTERM, SIGHUP and SIGUSR1 reach the ranks as
/// SIGUSR1; a second SIGINT ends them for good. Returns the exit status of the first rank that
/// failed, 128 + n if signal n ended it, kRequeue (75) if the wish to stop came before the ranks
/// could know it. Throws Error if the command cannot be started.
int run_and_watch(const MpirunCommand& command);

/// A rank that a signal has ended cannot say so itself: this line does.
std::string death_line(const std::string& who, int signal);

/// Takes out of mpirun's stderr what it says about ranks that have spoken for themselves; all else
/// passes, whole lines at a time.
class BannerFilter {
 public:
  /// Returns what may be shown now.
  std::string take(const std::string& text);
  /// The rest, at the end of the stream.
  std::string finish();
  /// Whether a line so far was about a rank that a signal ended.
  bool death_seen() const { return death_seen_; }

 private:
  std::string judge(const std::string& line);
  std::string partial_, frame_;
  bool in_frame_ = false, death_seen_ = false;
};

}  // namespace longspan::launcher
