/// Stop signals set a flag and disturb nothing. Every test runs in a process of its own: handlers
/// and threads stay.
#include "slurm/signals.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <thread>
#include <vector>

#include "model/kernels/kernels.hpp"

namespace longspan::slurm {
namespace {

using Clock = std::chrono::steady_clock;

/// The exit status of `work` in a child; 128 + signal if one killed it. `meanwhile` gets the
/// child's id.
int in_a_child(const std::function<int()>& work, const std::function<void(pid_t)>& meanwhile = {}) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(work());
  if (meanwhile) meanwhile(child);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool comes_true(const std::function<bool()>& condition) {
  const auto end = Clock::now() + std::chrono::seconds(10);
  while (!condition() && Clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return condition();
}

TEST(Signals, TheFirstOneIsKept) {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGHUP}) {
    EXPECT_EQ(in_a_child([&] {
                std::signal(SIGHUP, SIG_DFL);  // this test may run under nohup
                catch_stop_signals();
                if (stop_signal() != 0) return 1;
                ::kill(::getpid(), signal);
                if (!comes_true([&] { return stop_signal() == signal; })) return 2;
                ::kill(::getpid(), SIGUSR1);
                ::kill(::getpid(), SIGTERM);
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
                return stop_signal() == signal ? 0 : 3;
              }),
              0)
        << signal_name(signal);
  }
}

TEST(Signals, UnderNohupTheTerminalMayGo) {
  EXPECT_EQ(in_a_child([] {
              std::signal(SIGHUP, SIG_IGN);
              catch_stop_signals();
              ::kill(::getpid(), SIGHUP);
              std::this_thread::sleep_for(std::chrono::milliseconds(50));
              return stop_signal();
            }),
            0);
}

TEST(Signals, ASecondInterruptIsMeant) {
  EXPECT_EQ(in_a_child([] {
              catch_stop_signals();
              ::kill(::getpid(), SIGINT);
              if (!comes_true([] { return stop_signal() == SIGINT; })) return 1;
              ::kill(::getpid(), SIGINT);
              std::this_thread::sleep_for(std::chrono::seconds(10));
              return 2;
            }),
            128 + SIGINT);
}

TEST(Signals, ThreadsThatComputeDoNotTakeThem) {
  EXPECT_EQ(in_a_child([] {
              catch_stop_signals();
              catch_stop_signals();  // again does no harm
              const auto blocked = [] {
                sigset_t mask;
                pthread_sigmask(SIG_BLOCK, nullptr, &mask);
                return sigismember(&mask, SIGTERM) && sigismember(&mask, SIGINT) &&
                       sigismember(&mask, SIGUSR1);
              };
              bool in_thread = false;
              std::thread([&] { in_thread = blocked(); }).join();
              return blocked() && in_thread ? 0 : 1;
            }),
            0);
}

TEST(Signals, AStormDoesNotDisturbMatrixProducts) {
  // Taken by the computing thread, signals like these corrupt the heap or the product within a
  // second.
  const int status = in_a_child(
      [] {
        catch_stop_signals();
        const model::Backend backend = model::cpu_backend();
        const auto end = Clock::now() + std::chrono::milliseconds(1500);
        const std::int64_t sizes[][3] = {
            {256, 64, 64}, {128, 192, 64}, {64, 64, 256}, {1024, 64, 192}};
        while (Clock::now() < end) {
          for (const auto& [m, n, k] : sizes) {
            std::vector<float> a(static_cast<std::size_t>(m * k), 1),
                b(static_cast<std::size_t>(k * n), 1);
            std::vector<float> c(static_cast<std::size_t>(m * n));
            model::GemmArgs args;
            args.m = m, args.n = n, args.k = k;
            args.lda = k, args.ldb = n, args.ldc = n;
            args.a = a.data(), args.b = b.data(), args.c = c.data();
            backend.kernels.gemm(args, backend.stream);
            backend.stream.synchronize();
            if (std::any_of(c.begin(), c.end(),
                            [k = k](float x) { return x != static_cast<float>(k); }))
              return 1;
          }
        }
        return stop_signal() == SIGUSR1 ? 0 : 2;
      },
      [](pid_t child) {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        const auto end = Clock::now() + std::chrono::milliseconds(1200);
        while (Clock::now() < end) {
          ::kill(child, SIGUSR1);
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
      });
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace longspan::slurm
