/// Open MPI 4.1.4, measured: mpirun gives SIGTERM and SIGINT to its ranks and kills them 1 s later,
/// and returns 1; SIGUSR1 it only passes on, but drops it as long as it has not started the ranks
/// (30 to 50 ms). A rank that leaves with a status other than 0 makes it print two banners, send
/// SIGTERM to the others, and wait 2 s (odls_base_sigkill_timeout); it returns that rank's status.
#include "launcher/launch.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "launcher/text.hpp"
#include "parallel/handle.hpp"
#include "parallel/log.hpp"
#include "parallel/mesh.hpp"
#include "slurm/environment.hpp"
#include "slurm/signals.hpp"

namespace longspan::launcher {
namespace {

void close_descriptor(int descriptor) {
  ::close(descriptor);
}
using Descriptor = Handle<int, -1, close_descriptor>;
using Clock = std::chrono::steady_clock;

struct Pipe {
  Descriptor read, write;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) fail("cannot make a pipe: {}", std::strerror(errno));
    read = Descriptor(ends[0]);
    write = Descriptor(ends[1]);
  }
};

constexpr std::array kStopSignals = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
volatile std::sig_atomic_t stop_wishes = 0;
volatile std::sig_atomic_t interrupts = 0;
volatile std::sig_atomic_t last_signal = 0;

extern "C" void note_stop_wish(int signal) {
  last_signal = signal;
  stop_wishes = stop_wishes + 1;
  if (signal == SIGINT) interrupts = interrupts + 1;
}
extern "C" void note_child(int) {}

/// Notes the stop signals while it lives. They are blocked but inside poll(), so that none is
/// missed between a look and a wait.
class StopSignals {
 public:
  StopSignals() {
    stop_wishes = 0;
    interrupts = 0;
    last_signal = 0;
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    for (const int signal : kStopSignals) sigaddset(&blocked, signal);
    sigprocmask(SIG_BLOCK, &blocked, &mask_);
    struct sigaction action = {};
    sigfillset(&action.sa_mask);
    action.sa_handler = note_child;
    sigaction(SIGCHLD, &action, &old_child_);
    action.sa_handler = note_stop_wish;
    for (std::size_t i = 0; i < kStopSignals.size(); ++i) {
      sigaction(kStopSignals[i], nullptr, &old_[i]);
      // nohup has SIGHUP ignored, a shell without job control SIGINT: so it stays.
      if (old_[i].sa_handler != SIG_IGN) sigaction(kStopSignals[i], &action, nullptr);
    }
  }
  ~StopSignals() {
    for (std::size_t i = 0; i < kStopSignals.size(); ++i)
      sigaction(kStopSignals[i], &old_[i], nullptr);
    sigaction(SIGCHLD, &old_child_, nullptr);
    sigprocmask(SIG_SETMASK, &mask_, nullptr);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  const sigset_t& mask() const { return mask_; }
  /// Until `descriptor` can be read, a signal comes, or the time is over.
  bool wait_readable(int descriptor, std::chrono::milliseconds at_most) const {
    pollfd one = {descriptor, POLLIN, 0};
    const timespec time = {at_most.count() / 1000, at_most.count() % 1000 * 1000000};
    return ::ppoll(&one, 1, &time, &mask_) > 0;
  }

 private:
  sigset_t mask_;
  struct sigaction old_child_;
  std::array<struct sigaction, kStopSignals.size()> old_;
};

/// Does not return.
[[noreturn]] void become(const MpirunCommand& command, int errors, int failure,
                         const sigset_t& mask, pid_t parent) {
  // A group of its own: the terminal's Ctrl-C is for us, and mpirun would take it for the end.
  ::setpgid(0, 0);
  // If we are killed, the ranks still save and leave.
  ::prctl(PR_SET_PDEATHSIG, SIGUSR1);
  if (::getppid() != parent) ::_exit(1);
  for (const int signal : kStopSignals) std::signal(signal, SIG_DFL);
  std::signal(SIGCHLD, SIG_DFL);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
  // Reading the terminal from outside of its foreground group would stop mpirun.
  if (const int null = ::open("/dev/null", O_RDONLY); null >= 0) ::dup2(null, STDIN_FILENO);
  ::dup2(errors, STDERR_FILENO);
  for (const auto& [name, value] : command.environment)
    ::setenv(name.c_str(), value.c_str(), /*overwrite=*/0);
  std::vector<char*> words;
  for (const std::string& word : command.words) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execvp(words[0], words.data());
  const int error = errno;
  [[maybe_unused]] const auto written = ::write(failure, &error, sizeof error);
  ::_exit(127);
}

pid_t start(const MpirunCommand& command, Descriptor errors, const sigset_t& mask) {
  Pipe failure;
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) fail("cannot start a process: {}", std::strerror(errno));
  if (child == 0) become(command, errors.get(), failure.write.get(), mask, parent);
  ::setpgid(child, child);  // whoever comes first
  errors.reset();
  failure.write.reset();
  int error = 0;
  if (::read(failure.read.get(), &error, sizeof error) == sizeof error) {
    ::waitpid(child, nullptr, 0);
    fail("cannot start {}: {}: install Open MPI (Debian: openmpi-bin) or load its module",
         command.words[0], std::strerror(error));
  }
  return child;
}

/// Tells mpirun what the user wants, as often as that is needed.
class Messenger {
 public:
  Messenger(pid_t mpirun, std::chrono::milliseconds again) : mpirun_(mpirun), again_(again) {}
  void look() {
    const auto now = Clock::now();
    if (interrupts > 1) {
      // Twice Ctrl-C: SIGTERM lets mpirun end the ranks and tidy up; if it does not, it goes too.
      if (!ended_) {
        ended_ = true;
        kill_at_ = now + std::chrono::seconds(3);
        ::kill(mpirun_, SIGTERM);
      } else if (now >= kill_at_) {
        ::kill(-mpirun_, SIGKILL);
      }
    } else if (stop_wishes > 0 && now >= tell_at_) {
      // Again and again: what comes before the ranks have started is lost, and more than once does
      // no harm.
      tell_at_ = now + again_;
      ::kill(mpirun_, SIGUSR1);
    }
  }

 private:
  pid_t mpirun_;
  std::chrono::milliseconds again_;
  bool ended_ = false;
  Clock::time_point tell_at_, kill_at_;
};

void write_stderr(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

Cores usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof mask, &mask) != 0) return {1, false};
  // Hyperthreads of one core name the same siblings; mpirun counts and binds cores.
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::string siblings;
    std::ifstream file(
        fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return {static_cast<int>(cores.size()), CPU_COUNT(&mask) >= ::sysconf(_SC_NPROCESSORS_ONLN)};
}

MpirunCommand mpirun_command(int ranks, const Cores& cores, bool root, bool several_nodes,
                             const std::string& program,
                             const std::vector<std::string>& arguments) {
  MpirunCommand command;
  std::vector<std::string>& words = command.words;
  words = {"mpirun"};
  if (root) words.emplace_back("--allow-run-as-root");
  // Our ranks leave together, after MPI_Finalize: nothing is gained by 2 s between SIGTERM and
  // SIGKILL.
  words.insert(words.end(), {"--mca", "odls_base_sigkill_timeout", "0"});
  // Open MPI's handlers of fatal signals write a stack trace from inside them; after a corrupted
  // heap that was seen to hang for ever. Without them a rank dies at once, and mpirun tells us of
  // what.
  command.environment = {{"OMPI_MCA_opal_signal", ""}};
  if (!several_nodes) {
    // Shared memory is all that one node needs; probing the fabrics costs 0.2 s.
    command.environment.emplace_back("OMPI_MCA_pml", "ob1");
    command.environment.emplace_back("OMPI_MCA_btl", "self,vader");
    if (ranks > cores.count) {
      words.insert(words.end(), {"--oversubscribe", "--bind-to", "none"});
      command.environment.emplace_back("OMPI_MCA_mpi_yield_when_idle", "1");
    } else if (cores.all) {
      // The default binds a rank, and all of its threads, to one core.
      words.insert(words.end(), {"--map-by", fmt::format("slot:PE={}", cores.count / ranks),
                                 "--bind-to", "core"});
    } else {
      // mpirun does not know the mask (taskset, cpusets) and would bind outside of it; unbound
      // ranks inherit it.
      words.insert(words.end(), {"--bind-to", "none"});
    }
  }
  words.insert(words.end(), {"-n", std::to_string(ranks), program});
  words.insert(words.end(), arguments.begin(), arguments.end());
  return command;
}

std::string shell_text(const MpirunCommand& command) {
  std::string text;
  for (const auto& [name, value] : command.environment)
    text += name + "=" + (value.empty() ? "" : shell_quoted(value)) + " ";
  for (const std::string& word : command.words) text += shell_quoted(word) + " ";
  text.pop_back();
  return text;
}

int run_and_watch(const MpirunCommand& command) {
  const StopSignals signals;
  Pipe errors;
  const pid_t mpirun = start(command, std::move(errors.write), signals.mask());
  Messenger messenger(mpirun, std::chrono::milliseconds(500));
  BannerFilter filter;
  int status = 0;
  for (bool running = true; running;) {
    messenger.look();
    // mpirun is gone before its pipe is empty, and a rank that outlives it may keep the pipe open.
    const bool readable = signals.wait_readable(errors.read.get(), std::chrono::milliseconds(100));
    if (readable) {
      std::array<char, 4096> text;
      const ssize_t got = ::read(errors.read.get(), text.data(), text.size());
      if (got > 0) {
        write_stderr(filter.take({text.data(), static_cast<std::size_t>(got)}));
        continue;
      }
    }
    running = ::waitpid(mpirun, &status, readable ? 0 : WNOHANG) != mpirun;
  }
  write_stderr(filter.finish());
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  // SIGUSR1 found a rank that did not know it yet: nothing was computed, so nothing is lost.
  if (stop_wishes > 0 && interrupts < 2 && code == 128 + SIGUSR1) {
    log::info("{} was received before the ranks had begun", slurm::signal_name(last_signal));
    return static_cast<int>(ExitStatus::kRequeue);
  }
  if (interrupts > 1) return 128 + SIGINT;
  // mpirun tells which rank it was, but not every time.
  if (code > 128 && code <= 128 + SIGRTMAX && !filter.death_seen())
    write_stderr(death_line("a rank", code - 128));
  return code;
}

ExitStatus launch_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "launch",
      "starts train on several ranks of this machine with mpirun and returns their exit status. "
      "Ctrl-C, SIGTERM, "
      "SIGHUP or SIGUSR1 let the ranks finish the step, save and leave with 75; a second Ctrl-C "
      "ends them at once",
      {{"ranks", "N", "processes to start; each gets cores / N cores (required)"},
       {"config", "FILE", "settings, an INI file; --section.key VALUE overrides it"},
       {"print", "", "only print the mpirun command"}},
      "longspan launch --ranks 2 --config configs/tiny.ini --mesh.context 2", true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.has("ranks"))
    fail_usage("launch: how many ranks? --ranks N; this machine has {} cores",
               usable_cores().count);
  constexpr std::int64_t kMostRanks = 100000;
  const std::int64_t ranks = args.integer("ranks");
  if (ranks < 1 || ranks > kMostRanks)
    fail_usage("launch: --ranks {}: it must be between 1 and {}", ranks, kMostRanks);

  // What is wrong with the settings is said here, once, and not by ranks that have to be started
  // for it.
  const RunConfig config = parse_config(args.text("config"), args.settings());
  if (!config.mesh.elastic) resolve_mesh(config.mesh, static_cast<int>(ranks));

  std::vector<std::string> train = {"train"};
  if (args.has("config")) train.insert(train.end(), {"--config", args.text("config")});
  train.insert(train.end(), args.settings().begin(), args.settings().end());
  const auto job = slurm::current_job();
  const bool several_nodes = job && job->node_list.find_first_of(",[") != std::string::npos;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const MpirunCommand command = mpirun_command(static_cast<int>(ranks), usable_cores(),
                                               ::geteuid() == 0, several_nodes, self, train);
  if (args.has("print")) {
    log::line(shell_text(command));
    return ExitStatus::kDone;
  }
  return static_cast<ExitStatus>(run_and_watch(command));
}

}  // namespace longspan::launcher
