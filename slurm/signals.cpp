#include "slurm/signals.hpp"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

namespace longspan::slurm {
namespace {

std::atomic<int> caught{0};
static_assert(std::atomic<int>::is_always_lock_free);

extern "C" void note_signal(int signal) {
  if (signal == SIGINT && caught == SIGINT) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  int none = 0;
  caught.compare_exchange_strong(none, signal);
}

}  // namespace

void catch_stop_signals() {
  std::vector<int> signals = {SIGTERM, SIGINT, SIGUSR1};
  // nohup has SIGHUP ignored: so it stays, and the run outlives its terminal.
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) signals.push_back(SIGHUP);
  sigset_t stop;
  sigemptyset(&stop);
  for (const int signal : signals) sigaddset(&stop, signal);

  static bool listening = false;
  if (!listening) {
    listening = true;
    std::thread([] {
      for (;;) ::pause();
    }).detach();
  }
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);

  struct sigaction action = {};
  action.sa_handler = note_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : signals) sigaction(signal, &action, nullptr);
}

int stop_signal() {
  return caught;
}

const char* signal_name(int signal) {
  switch (signal) {
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGHUP:
      return "SIGHUP";
    default:
      return "signal";
  }
}

}  // namespace longspan::slurm
