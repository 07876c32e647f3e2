// ranks: 2
/// What the watchdog and the flight recorder cost a training step. Under mpirun, unbound:
///   mpirun -n 2 --bind-to none bench_watchdog [--tiny] [--pairs N] [--steps N] [--timeout SECONDS]
///                                             [--section.key VALUE ...]
/// One run (configs/tiny.ini, mesh.context = ranks) takes `steps` steps with both, then as many
/// with neither, `pairs` times, which comes first changes each time; the cost is the median of the
/// pairs' ratios. Steps hold the same collectives as those of `longspan train`. The timeout decides
/// how often the watchdog looks and writes: its shortest, 1 s, is 20 looks a second, where a run
/// without run.hang-timeout has one. Checks that everything was recorded in the one half and
/// nothing in the other. Since threads that share cores can also gain from being woken, the work is
/// measured by itself as well: recording a call, times the calls of a step, and the processor time
/// of the watchdog's thread. Without --tiny it checks that neither is above 1 %, as far as the
/// noise lets that be told.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "launcher/training_run.hpp"
#include "parallel/agree.hpp"
#include "parallel/flight_recorder.hpp"
#include "parallel/watchdog.hpp"
#include "support/peak.hpp"
#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// As train.cpp takes them, without saves and files.
void take_step(launcher::TrainingRun& run, parallel::Watchdog* watchdog) {
  const auto begin = Clock::now();
  const Communicator& world = run.mesh().world();
  const std::int64_t step = ++run.progress().step;
  flight::recorder().enter(flight::Phase::kData, step);
  std::vector<io::Batch> batches;
  std::int64_t valid = 0;
  for (int i = 0; i < run.accumulation(); ++i) {
    batches.push_back(run.loader().next());
    for (const std::int32_t target : batches.back().targets_BT) valid += target >= 0;
  }
  valid = std::max<std::int64_t>(1, run.mesh().replicas().all_reduce_sum(valid));
  flight::recorder().enter(flight::Phase::kCompute, step);
  double loss = 0;
  for (int i = 0; i < run.accumulation(); ++i) {
    run.sharding().begin_micro_batch(i + 1 == run.accumulation());
    loss += run.transformer().train(run.micro_batch(batches[static_cast<std::size_t>(i)]),
                                    1.0f / static_cast<float>(valid));
  }
  flight::recorder().enter(flight::Phase::kUpdate, step);
  run.finish_gradients();
  world.all_reduce_sum(loss);
  run.optimizer().update(1e-4, run.gradient_norm(), step);
  flight::recorder().enter(flight::Phase::kReport, step);
  for (int i = 0; i < 5; ++i) world.all_reduce_max(seconds_since(begin));  // metrics, wish to stop
  if (watchdog != nullptr) watchdog->step_done(seconds_since(begin));
}

struct Half {
  double seconds = 0;         ///< of a step, of the slowest rank
  std::int64_t recorded = 0;  ///< operations of all groups
};

Half measure(launcher::TrainingRun& run, bool watched, double timeout, int steps) {
  const Communicator& world = run.mesh().world();
  flight::recorder().pause(!watched);
  // Both halves begin alike, with its files and collectives; in one of them it has gone again.
  std::optional<parallel::Watchdog> watchdog(std::in_place, parallel::HangTimeout{true, timeout},
                                             run.config().directory(), world);
  if (!watched) watchdog.reset();
  const auto begun = [&] {
    std::int64_t all = 0;
    for (const flight::GroupState& g : flight::recorder().snapshot(false).groups) all += g.begun;
    return all;
  };
  world.barrier();
  const std::int64_t before = begun();
  const auto begin = Clock::now();
  for (int i = 0; i < steps; ++i) take_step(run, watchdog ? &*watchdog : nullptr);
  Half half;
  half.recorded = begun() - before;
  half.seconds = world.all_reduce_max(seconds_since(begin) / steps);
  return half;
}

double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Seconds that recording one operation takes.
double recording_seconds(const Communicator& world) {
  constexpr int kCalls = 100000;
  const auto begin = Clock::now();
  for (int i = 0; i < kCalls; ++i)
    const flight::Scope scope(world.flight_group(), flight::Operation::kAllReduce,
                              flight::Element::kFloat64, 8);
  return seconds_since(begin) / kCalls;
}

/// Processor time of the watchdog's thread, of each second, while nothing else runs.
double watching_share(const launcher::TrainingRun& run, double timeout) {
  const parallel::Watchdog watchdog({true, timeout}, run.config().directory(), run.mesh().world());
  const double before = cpu_seconds();
  const auto begin = Clock::now();
  std::this_thread::sleep_for(std::chrono::seconds(2));
  return (cpu_seconds() - before) / seconds_since(begin);
}

int benchmark(int argc, char** argv) {
  const Communicator world = Communicator::world();
  int pairs = 61, steps = 40;
  double timeout = 1;
  bool tiny = false;
  std::vector<std::string> settings = {
      "--run.threads",       "1",     "--train.validate-every", "0",
      "--checkpoint.resume", "never", "--mesh.context",         std::to_string(world.size())};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--tiny")
      pairs = 2, steps = 3, tiny = true;
    else if (name == "--pairs" && i + 1 < argc)
      pairs = std::max(1, std::atoi(argv[++i]));
    else if (name == "--steps" && i + 1 < argc)
      steps = std::max(1, std::atoi(argv[++i]));
    else if (name == "--timeout" && i + 1 < argc)
      timeout = std::max(1.0, std::atof(argv[++i]));
    else
      settings.push_back(name);
  }
  std::optional<testing_support::TemporaryDirectory> folder;
  std::string path;
  agree(world, [&] {
    if (world.rank() != 0) return;
    folder.emplace();
    path = folder->path();
    std::ofstream(path + "/text.txt") << testing_support::sample_text(40000);
    const auto prepared = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", path + "/data.h5", path + "/text.txt"});
    if (prepared.status != 0) fail("prepare: {}", prepared.err);
  });
  path = world.broadcast(path, 0);
  settings.insert(settings.end(),
                  {"--data.path", path + "/data.h5", "--run.directory", path + "/run"});
  launcher::TrainingRun run(
      launcher::parse_config(std::string(LONGSPAN_SOURCE_DIR) + "/configs/tiny.ini", settings),
      world, launcher::cpu_compute());
  run.restore();
  measure(run, true, timeout, tiny ? 1 : 10);  // warms up

  std::vector<double> ratios, on_seconds, off_seconds;
  bool right = true;
  std::int64_t recorded = 0;
  for (int i = 0; i < pairs; ++i) {
    Half halves[2];
    for (const bool watched : {i % 2 == 0, i % 2 != 0})
      halves[watched] = measure(run, watched, timeout, steps);
    right = right && halves[0].recorded == 0 && halves[1].recorded >= 6 * steps;
    recorded = halves[1].recorded;
    ratios.push_back(halves[1].seconds / halves[0].seconds);
    off_seconds.push_back(halves[0].seconds), on_seconds.push_back(halves[1].seconds);
  }
  flight::recorder().pause(false);
  std::sort(ratios.begin(), ratios.end());
  // The median's 95 % interval: whatever the noise is like, so many pairs lie on either side of it.
  const double n = pairs;
  const auto at = [&](double place) {
    return 100 * (ratios[static_cast<std::size_t>(std::clamp(place, 0.0, n - 1))] - 1);
  };
  const double low = at(std::floor(n / 2 - 0.98 * std::sqrt(n))), cost = at(std::floor(n / 2)),
               high = at(std::ceil(n / 2 + 0.98 * std::sqrt(n)));
  const double each = recording_seconds(world), calls = static_cast<double>(recorded) / steps;
  const double work = 100 * (each * calls / testing_support::median(off_seconds) +
                             world.all_reduce_max(watching_share(run, timeout)));
  if (world.rank() == 0) {
    fmt::print("{}\n{} ranks, {} pairs of {} steps, run.hang-timeout={}\n",
               launcher::version_line(), world.size(), pairs, steps, timeout);
    fmt::print(
        "| step without, median ms | step with, median ms | calls a step | cost, "
        "median "
        "of the pairs | 95 % interval of it |\n");
    fmt::print("| {:.3f} | {:.3f} | {:.1f} | {:+.2f} % | {:+.2f} to {:+.2f} % |\n",
               1e3 * testing_support::median(off_seconds),
               1e3 * testing_support::median(on_seconds), calls, cost, low, high);
    fmt::print("its work by itself: {:.0f} ns a call, with its thread {:.3f} % of a step\n",
               1e9 * each, work);
    if (!right) fmt::print(stderr, "one half has recorded what the other should have\n");
  }
  const bool cheap = tiny || world.broadcast(std::int64_t{low < 1 && work < 1}, 0) != 0;
  return world.all_reduce_min(std::int64_t{right}) != 0 && cheap ? 0 : 1;
}

}  // namespace
}  // namespace longspan

int main(int argc, char** argv) {
  try {
    const longspan::MpiRuntime mpi;
    return longspan::benchmark(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_watchdog: {}\n", e.what());
    return 1;
  }
}
