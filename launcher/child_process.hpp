/// A program started beside this one: outside of the terminal's foreground group, without input,
/// and not left behind when this process is killed. Waiting for it is the caller's.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <string>
#include <utility>
#include <vector>

namespace longspan::launcher {

struct ChildProgram {
  std::vector<std::string>
      words;  ///< the program, looked up in PATH unless it has a '/'; arguments
  /// Set in the child where they are not set already.
  std::vector<std::pair<std::string, std::string>> environment;
  int out = -1, errors = -1;  ///< descriptors; the caller's own copies stay open
  const sigset_t* signal_mask =
      nullptr;                     ///< of the child; the handlers of its signals are the default
  int when_parent_dies = SIGTERM;  ///< the signal it gets
};

/// Returns its process id, which is also its process group's. Throws Error with the reason if there
/// can be no further process, and, with `advice` behind it, if the program cannot be started.
pid_t start_child(const ChildProgram& program, const std::string& advice = "");

/// What a shell would call its exit status: 128 + n if signal n ended it. `status`: of waitpid().
int exit_status(int status);

}  // namespace longspan::launcher
