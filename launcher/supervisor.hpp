/// What follows when the ranks of a run have ended: start them again, after what pause, or stop for
/// good. Pure: launch.cpp acts on it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace longspan::launcher {

/// How one start of the ranks ended, and where the run stood then.
struct Ending {
  int status = 0;                ///< exit status; 128 + n = signal n
  std::int64_t step = 0;         ///< the last one that was finished
  std::int64_t checkpoint = -1;  ///< step of the newest one; -1 = there is none
  bool began = true;             ///< the run was set up; else no step was even tried
  bool stop_wished = false;      ///< by a signal or by the file `stop`
};

struct Verdict {
  enum class Kind {
    kEnd,      ///< nothing went wrong, or the user has ended it
    kRestart,  ///< after `pause_seconds`
    kGiveUp,   ///< it failed and another start would not help
  };
  Kind kind = Kind::kEnd;
  double pause_seconds = 0;
  std::string why = {};  ///< of kGiveUp, one line; may be empty where the ranks have said it all
};

/// Seconds before restart number `restart` (from 1): 1, 2, 4, ... and never more than 60.
double pause_before(int restart);

class Supervisor {
 public:
  explicit Supervisor(int max_restarts) : max_restarts_(max_restarts) {}
  /// What to do after `ending`. Ends: status 0, 75, a wish to stop. Gives up: status 2 or 3 (the
  /// next start would find the same), a first start that did not even begin, a second failure in a
  /// row with neither a new step nor a new checkpoint, max_restarts. Everything else is a restart.
  Verdict judge(const Ending& ending);
  int restarts() const { return restarts_; }  ///< that judge() has ordered so far
  int max_restarts() const { return max_restarts_; }

 private:
  int max_restarts_, restarts_ = 0;
  std::optional<Ending> failed_;  ///< the last failure
};

}  // namespace longspan::launcher
