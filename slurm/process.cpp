#include "slurm/process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <string_view>

extern char** environ;

namespace longspan::slurm {
namespace {

using Clock = std::chrono::steady_clock;

/// Both ends are closed on exec; a write to a reader that is gone must not end us, so input goes
/// through a pipe only as far as it is read (poll) and SIGPIPE is blocked meanwhile.
struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) == 0) read = ends[0], write = ends[1];
  }
  ~Pipe() { close_read(), close_write(); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void close_read() { close(read); }
  void close_write() { close(write); }

 private:
  static void close(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
};

class SigpipeBlocked {
 public:
  SigpipeBlocked() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~SigpipeBlocked() {
    const timespec now = {};
    if (sigismember(&before_, SIGPIPE) == 0)
      while (sigtimedwait(&pipe_, nullptr, &now) > 0) {
      }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SigpipeBlocked(const SigpipeBlocked&) = delete;
  SigpipeBlocked& operator=(const SigpipeBlocked&) = delete;

 private:
  sigset_t pipe_, before_;
};

bool of_job(std::string_view variable) {
  return variable.rfind("SLURM_", 0) == 0 && variable.rfind("SLURM_CONF=", 0) != 0;
}

/// 0, or errno. The child has no signal blocked.
int spawn(const std::vector<std::string>& words, Environment keep, const Pipe& in, const Pipe& out,
          const Pipe& err, pid_t& child) {
  std::vector<char*> argv, environment;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  for (char** variable = environ; *variable != nullptr; ++variable)
    if (keep == Environment::kAll || !of_job(*variable)) environment.push_back(*variable);
  environment.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, in.read, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, out.write, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&files, err.write, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  const int failure =
      ::posix_spawnp(&child, argv[0], &files, &attributes, argv.data(), environment.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  return failure;
}

}  // namespace

ProcessOutcome run_process(const std::vector<std::string>& words, const std::string& input,
                           std::chrono::milliseconds patience, Environment environment) {
  const SigpipeBlocked no_sigpipe;
  ProcessOutcome outcome;
  Pipe in, out, err;
  pid_t child = 0;
  const int failure = spawn(words, environment, in, out, err, child);
  if (failure != 0) {
    outcome.status = 127;
    outcome.found = failure != ENOENT;
    return outcome;
  }
  in.close_read(), out.close_write(), err.close_write();
  ::fcntl(in.write, F_SETFL, O_NONBLOCK);

  const auto end = Clock::now() + patience;
  std::size_t written = 0;
  while (out.read >= 0 || err.read >= 0) {
    if (written == input.size()) in.close_write();
    std::array<pollfd, 3> files = {
        {{out.read, POLLIN, 0}, {err.read, POLLIN, 0}, {in.write, POLLOUT, 0}}};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) {
      outcome.timed_out = true;
      ::kill(child, SIGKILL);
      break;
    }
    if (::poll(files.data(), files.size(), static_cast<int>(left.count())) < 0) continue;
    for (const bool first : {true, false}) {
      if (files[first ? 0 : 1].revents == 0) continue;
      std::array<char, 4096> text;
      const ssize_t got = ::read(first ? out.read : err.read, text.data(), text.size());
      if (got > 0)
        (first ? outcome.out : outcome.err).append(text.data(), static_cast<std::size_t>(got));
      else if (got == 0 || errno != EINTR)
        first ? out.close_read() : err.close_read();
    }
    if (files[2].revents != 0) {
      const ssize_t put = ::write(in.write, input.data() + written, input.size() - written);
      if (put > 0)
        written += static_cast<std::size_t>(put);
      else if (put < 0 && errno != EAGAIN && errno != EINTR)
        in.close_write(), written = input.size();
    }
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

}  // namespace longspan::slurm
