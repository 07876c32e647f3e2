#include "launcher/launch.hpp"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/machine.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

volatile std::sig_atomic_t child_pid = 0;
volatile std::sig_atomic_t interrupts = 0;

extern "C" void pass_on(int signal) {
  const int saved = errno;
  if (signal == SIGINT) interrupts = interrupts + 1;
  // A second Ctrl-C is meant: mpirun then ends its ranks.
  if (child_pid > 0) ::kill(static_cast<pid_t>(child_pid), interrupts > 1 ? SIGTERM : SIGUSR1);
  errno = saved;
}

/// Copies stderr of the ranks line by line and leaves out what mpirun frames in lines of dashes: our own message says it already.
class BannerFilter {
 public:
  void take(const char* text, std::size_t length) {
    for (std::size_t i = 0; i < length; ++i) {
      line_ += text[i];
      if (text[i] == '\n') flush();
    }
  }
  void flush() {
    if (line_.rfind("--------------------", 0) == 0)
      inside_ = !inside_;
    else if (!inside_)
      std::fwrite(line_.data(), 1, line_.size(), stderr);
    line_.clear();
  }

 private:
  std::string line_;
  bool inside_ = false;
};

}  // namespace

std::vector<std::string> mpirun_command(int ranks, int cores, bool root, const std::string& program,
                                        const std::vector<std::string>& arguments) {
  // Ranks are not bound: each starts cores / ranks threads, and binding a rank would bind all of them to one core.
  std::vector<std::string> command = {"mpirun", "--quiet", "-n", std::to_string(ranks), "--bind-to", "none"};
  if (root) command.emplace_back("--allow-run-as-root");
  if (ranks > cores) command.insert(command.end(), {"--oversubscribe", "--mca", "mpi_yield_when_idle", "1"});
  command.push_back(program);
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

int run_and_watch(const std::vector<std::string>& command) {
  int errors[2], started[2];
  if (::pipe(errors) != 0 || ::pipe2(started, O_CLOEXEC) != 0) fail("cannot make a pipe: {}", std::strerror(errno));
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) fail("cannot start {}: {}", command[0], std::strerror(errno));
  if (child == 0) {
    ::setpgid(0, 0);  // a terminal's Ctrl-C reaches only us
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(1);
    ::dup2(errors[1], STDERR_FILENO);
    ::close(errors[0]);
    ::close(errors[1]);
    // One node: shared memory is all it takes, and probing the fabrics costs 0.2 s.
    ::setenv("OMPI_MCA_pml", "ob1", 0);
    ::setenv("OMPI_MCA_btl", "self,vader", 0);
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    const int code = errno;
    [[maybe_unused]] const auto written = ::write(started[1], &code, sizeof code);
    ::_exit(127);
  }
  ::close(errors[1]);
  ::close(started[1]);
  child_pid = child;
  struct sigaction action = {};
  action.sa_handler = pass_on;
  sigemptyset(&action.sa_mask);
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);

  int code = 0;
  if (::read(started[0], &code, sizeof code) == sizeof code)
    fail_usage("cannot start {}: {}: install Open MPI (openmpi-bin) or load its module", command[0], std::strerror(code));
  ::close(started[0]);

  BannerFilter filter;
  char text[4096];
  for (;;) {
    const ssize_t got = ::read(errors[0], text, sizeof text);
    if (got > 0)
      filter.take(text, static_cast<std::size_t>(got));
    else if (got == 0 || errno != EINTR)
      break;
  }
  filter.flush();
  ::close(errors[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  child_pid = 0;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

ExitStatus launch_command(const std::vector<std::string>& arguments) {
  const Arguments args(arguments, "launch", "starts `longspan train` on several ranks of this machine and returns their exit status",
                       {{"ranks", "N", "how many ranks"},
                        {"config", "FILE", "settings, an INI file; --section.key VALUE overrides it"},
                        {"print", "", "only print the mpirun command"}},
                       "longspan launch --ranks 2 --config configs/tiny.ini --mesh.context 2", true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.has("ranks")) fail_usage("launch: how many ranks? --ranks N");
  const std::int64_t ranks = args.integer("ranks");
  if (ranks < 1 || ranks > 4096) fail_usage("launch: --ranks {}: it must be between 1 and 4096", ranks);
  std::vector<std::string> train = {"train"};
  if (args.has("config")) train.insert(train.end(), {"--config", args.text("config")});
  train.insert(train.end(), args.settings().begin(), args.settings().end());
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const auto command = mpirun_command(static_cast<int>(ranks), available_cores(), ::geteuid() == 0, self, train);
  if (args.has("print")) {
    std::string line;
    for (const std::string& word : command) line += (line.empty() ? "" : " ") + word;
    log::line(line);
    return ExitStatus::kDone;
  }
  return static_cast<ExitStatus>(run_and_watch(command));
}

}  // namespace longspan::launcher
