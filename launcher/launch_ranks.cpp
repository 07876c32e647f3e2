/// Open MPI 4.1.4, measured: mpirun gives SIGTERM and SIGINT to its ranks and kills them 1 s later,
/// and returns 1; SIGUSR1 it only passes on, but drops it as long as it has not started the ranks
/// (30 to 50 ms). A rank that leaves with a status other than 0 makes it print two banners, send
/// SIGTERM to the others, and wait 2 s (odls_base_sigkill_timeout); it returns that rank's status.
#include "launcher/launch_ranks.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "io/file.hpp"
#include "launcher/child_process.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"
#include "slurm/signals.hpp"

namespace longspan::launcher {
namespace {

using io::Descriptor;
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

volatile std::sig_atomic_t stop_wishes = 0;
volatile std::sig_atomic_t interrupts = 0;
volatile std::sig_atomic_t newest_signal = 0;

extern "C" void note_stop_wish(int signal) {
  newest_signal = signal;
  stop_wishes = stop_wishes + 1;
  if (signal == SIGINT) interrupts = interrupts + 1;
}
extern "C" void note_child(int) {}

pid_t start(const MpirunCommand& command, Descriptor out, Descriptor errors, const sigset_t& mask) {
  ChildProgram program;
  program.words = command.words;
  program.environment = command.environment;
  program.out = out.get(), program.errors = errors.get();
  program.signal_mask = &mask;
  program.when_parent_dies = SIGUSR1;  // the ranks still save and leave
  return start_child(program, "install Open MPI (Debian: openmpi-bin) or load its module");
}

/// Of descriptors, -1: is none. No signal interrupts it: those that matter are blocked outside of
/// StopSignals::wait_readable().
std::array<bool, 2> readable_now(std::array<int, 2> descriptors) {
  std::array<pollfd, 2> polled = {pollfd{descriptors[0], POLLIN, 0},
                                  pollfd{descriptors[1], POLLIN, 0}};
  if (::poll(polled.data(), polled.size(), 0) <= 0) return {false, false};
  return {polled[0].revents != 0, polled[1].revents != 0};
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

}  // namespace

StopSignals::StopSignals() {
  stop_wishes = 0;
  interrupts = 0;
  newest_signal = 0;
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

StopSignals::~StopSignals() {
  for (std::size_t i = 0; i < kStopSignals.size(); ++i)
    sigaction(kStopSignals[i], &old_[i], nullptr);
  sigaction(SIGCHLD, &old_child_, nullptr);
  sigprocmask(SIG_SETMASK, &mask_, nullptr);
}

bool StopSignals::stop_wished() const {
  return stop_wishes > 0;
}

bool StopSignals::interrupted() const {
  return interrupts > 1;
}

int StopSignals::last_signal() const {
  return newest_signal;
}

std::array<bool, 2> StopSignals::wait_readable(std::array<int, 2> descriptors,
                                               std::chrono::milliseconds at_most) const {
  std::array<pollfd, 2> polled = {pollfd{descriptors[0], POLLIN, 0},
                                  pollfd{descriptors[1], POLLIN, 0}};
  const timespec time = {at_most.count() / 1000, at_most.count() % 1000 * 1000000};
  if (::ppoll(polled.data(), polled.size(), &time, &mask_) <= 0) return {false, false};
  return {polled[0].revents != 0, polled[1].revents != 0};
}

int run_and_watch(const MpirunCommand& command, const StopSignals& signals, RankOutput& output) {
  Pipe out, errors;
  const pid_t mpirun =
      start(command, std::move(out.write), std::move(errors.write), signals.mask());
  Messenger messenger(mpirun, std::chrono::milliseconds(500));
  std::array<Descriptor*, 2> pipes = {&out.read, &errors.read};
  constexpr std::array kStreams = {RankOutput::Stream::kOut, RankOutput::Stream::kErrors};
  int status = 0;
  // mpirun is gone before its pipes are empty, and a rank that outlives it may keep them open: the
  // end is when it is gone and nothing more is there to be read.
  for (bool gone = false, got_text = true; got_text || !gone;) {
    got_text = false;
    const std::array<int, 2> ends = {out.read.get(), errors.read.get()};
    if (!gone) messenger.look();
    const auto readable =
        gone ? readable_now(ends) : signals.wait_readable(ends, std::chrono::milliseconds(100));
    for (std::size_t i = 0; i < pipes.size(); ++i) {
      if (!readable[i]) continue;
      std::array<char, 65536> text;
      const ssize_t got = ::read(pipes[i]->get(), text.data(), text.size());
      if (got > 0) {
        output.take(kStreams[i], {text.data(), static_cast<std::size_t>(got)});
        got_text = true;
      } else if (got == 0 || errno != EINTR) {
        pipes[i]->reset();
      }
    }
    if (!gone && !got_text && ::waitpid(mpirun, &status, WNOHANG) == mpirun) gone = got_text = true;
  }
  output.finish();
  const int code = exit_status(status);
  // SIGUSR1 found a rank that did not know it yet: nothing was computed, so nothing is lost.
  if (signals.stop_wished() && !signals.interrupted() && code == 128 + SIGUSR1) {
    log::info("{} was received before the ranks had begun",
              slurm::signal_name(signals.last_signal()));
    return static_cast<int>(ExitStatus::kRequeue);
  }
  if (signals.interrupted()) return 128 + SIGINT;
  // mpirun tells which rank it was, but not every time.
  if (code > 128 && code <= 128 + SIGRTMAX && !output.death_seen())
    output.died(death_line("a rank", code - 128));
  output.ended(code);
  return code;
}

int run_and_watch(const MpirunCommand& command) {
  const StopSignals signals;
  RankOutput output;
  return run_and_watch(command, signals, output);
}

}  // namespace longspan::launcher
