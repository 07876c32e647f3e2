#include "launcher/child_process.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "io/file.hpp"
#include "launcher/launch_ranks.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

/// In the child: does not return.
[[noreturn]] void become(const ChildProgram& program, int failure, pid_t parent) {
  // A group of its own: the terminal's Ctrl-C is for us, who pass it on as we see fit.
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, program.when_parent_dies);
  if (::getppid() != parent) ::_exit(1);
  for (const int signal : kStopSignals) std::signal(signal, SIG_DFL);
  std::signal(SIGCHLD, SIG_DFL);
  sigprocmask(SIG_SETMASK, program.signal_mask, nullptr);
  // Reading the terminal from outside of its foreground group would stop it.
  if (const int null = ::open("/dev/null", O_RDONLY); null >= 0) ::dup2(null, STDIN_FILENO);
  ::dup2(program.out, STDOUT_FILENO);
  ::dup2(program.errors, STDERR_FILENO);
  for (const auto& [name, value] : program.environment)
    ::setenv(name.c_str(), value.c_str(), /*overwrite=*/0);
  std::vector<char*> argv;
  for (const std::string& word : program.words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::execvp(argv[0], argv.data());
  const int error = errno;
  [[maybe_unused]] const auto written = ::write(failure, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

pid_t start_child(const ChildProgram& program, const std::string& advice) {
  std::array<int, 2> ends;
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail("cannot make a pipe: {}", std::strerror(errno));
  const io::Descriptor failure(ends[0]);
  io::Descriptor failure_of_child(ends[1]);
  const pid_t parent = ::getpid(), child = ::fork();
  if (child < 0) fail("cannot start a process: {}", std::strerror(errno));
  if (child == 0) become(program, failure_of_child.get(), parent);
  ::setpgid(child, child);  // whoever comes first
  failure_of_child.reset();
  int error = 0;
  if (::read(failure.get(), &error, sizeof error) == sizeof error) {
    ::waitpid(child, nullptr, 0);
    fail("cannot start {}: {}{}{}", program.words[0], std::strerror(error),
         advice.empty() ? "" : ": ", advice);
  }
  return child;
}

int exit_status(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace longspan::launcher
