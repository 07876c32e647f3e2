/// The command that starts the ranks with mpirun, and what mpirun says about them. Read next:
/// launch_ranks.hpp (one start), supervisor.hpp (the next one), launch.cpp (the loop).
#pragma once

#include <cstddef>
#include <optional>
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

/// Where the ranks are to run.
struct Places {
  Cores cores = {};            ///< of this machine
  bool root = false;           ///< mpirun wants to be told that this is on purpose
  bool several_nodes = false;  ///< of a hostfile or an allocation; mpirun reaches them itself
  int slots = 0;               ///< ranks that fit there as mpirun counts them; 0 = not known
  std::string hostfile = {};   ///< empty = this machine, or the allocation around us
  std::vector<std::string> forwarded = {};  ///< variables that other hosts are to see
};

/// `program arguments...` on `ranks` ranks. On one node every rank is bound to cores / ranks cores
/// of its own; where ranks outnumber cores they share them evenly, or none is bound, and waiting
/// ranks yield. On several nodes no rank is bound: it takes its share of the cores of its node.
/// Pure.
MpirunCommand mpirun_command(int ranks, const Places& places, const std::string& program,
                             const std::vector<std::string>& arguments);

/// Names of the variables of this environment that ranks on other hosts need: threads, oneDNN,
/// libraries, and kRestartVariable.
std::vector<std::string> variables_for_other_hosts();

/// As a person would type it.
std::string shell_text(const MpirunCommand& command);

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
  struct Departure {
    int rank = 0, status = 0;
  };
  /// The rank that was the first to leave with a status other than 0, if mpirun has said so.
  const std::optional<Departure>& first_departure() const { return departure_; }

 private:
  std::string judge(const std::string& line);
  std::string partial_, frame_;
  bool in_frame_ = false, death_seen_ = false;
  std::optional<Departure> departure_;
};

}  // namespace longspan::launcher
