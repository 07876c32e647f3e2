/// `longspan train`: the run from start to end, and the step from top to bottom. Every rank runs
/// this. What the pieces are is in training_run.hpp; why a rank may not leave alone is in
/// parallel/agree.hpp.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <optional>
#include <utility>
#include <vector>

#include "io/file.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/deadline.hpp"
#include "launcher/duration.hpp"
#include "launcher/gpu_meter.hpp"
#include "launcher/machine.hpp"
#include "launcher/metrics.hpp"
#include "launcher/options.hpp"
#include "launcher/prediction.hpp"
#include "launcher/profile.hpp"
#include "launcher/run_directory.hpp"
#include "launcher/run_header.hpp"
#include "launcher/run_record.hpp"
#include "launcher/saver.hpp"
#include "launcher/step_trace.hpp"
#include "launcher/stopping.hpp"
#include "launcher/stragglers.hpp"
#include "launcher/tensorboard.hpp"
#include "launcher/training_run.hpp"
#include "launcher/world_check.hpp"
#include "model/kernels/cuda/plugin.hpp"
#include "model/lr_schedule.hpp"
#include "parallel/agree.hpp"
#include "parallel/flight_recorder.hpp"
#include "parallel/log.hpp"
#include "parallel/watchdog.hpp"
#include "slurm/environment.hpp"
#include "slurm/remaining_time.hpp"
#include "slurm/signals.hpp"

namespace longspan::launcher {
namespace {

using Clock = std::chrono::steady_clock;
using flight::Phase;

/// What one optimizer step measured; the same on every rank.
struct StepResult {
  double loss = 0, gradient_norm = 0, learning_rate = 0;
};

/// One optimizer step.
StepResult train_step(TrainingRun& run) {
  const RunConfig& config = run.config();
  const Communicator& world = run.mesh().world();
  Progress& progress = run.progress();

  // This rank's share of the global batch. The targets that count are counted first, over all
  // ranks: the loss is one global mean.
  const std::int64_t step = progress.step + 1;
  flight::recorder().enter(Phase::kData, step);
  std::vector<io::Batch> batches;
  std::int64_t valid = 0;
  for (int i = 0; i < run.accumulation(); ++i) {
    batches.push_back(run.loader().next());
    const auto& targets = batches.back().targets_BT;
    valid += std::count_if(targets.begin(), targets.end(), [](std::int32_t t) { return t >= 0; });
  }
  // Tensor ranks read the same tokens: one of them counts.
  valid = std::max<std::int64_t>(1, run.mesh().replicas().all_reduce_sum(valid));
  const float gradient_scale = 1.0f / static_cast<float>(valid);

  // Forward and backward. During the last micro-batch finished gradients start on their way while
  // backward goes on.
  flight::recorder().enter(Phase::kCompute, step);
  double loss_sum = 0;
  for (int i = 0; i < run.accumulation(); ++i) {
    run.sharding().begin_micro_batch(i + 1 == run.accumulation());
    loss_sum += run.transformer().train(run.micro_batch(batches[static_cast<std::size_t>(i)]),
                                        gradient_scale);
  }
  flight::recorder().enter(Phase::kUpdate, step);
  run.finish_gradients();

  // The same numbers on every rank from here on.
  StepResult result;
  result.loss = world.all_reduce_sum(loss_sum) / static_cast<double>(valid);
  result.gradient_norm = run.gradient_norm();
  if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) {
    const std::string culprit = run.diagnose(batches);
    run.saver().wait();  // it becomes the last good one
    const std::string last_good =
        world.broadcast(io::newest_checkpoint(config.directory() + "/checkpoints"), 0);
    throw AgreedError(
        fmt::format("step {}: loss {} and gradient norm {}; first not finite: {}; last good "
                    "checkpoint: {}: lower "
                    "optimizer.learning-rate or look at the data of samples {} to {}",
                    progress.step + 1, result.loss, result.gradient_norm, culprit,
                    last_good.empty() ? "none" : last_good, progress.next_sample,
                    progress.next_sample + config.train.global_batch - 1));
  }
  result.learning_rate =
      model::learning_rate_at(config.optimizer, progress.step + 1, config.train.steps);
  run.saver().wait_for_copy();  // a save still reads what changes now
  run.optimizer().update(result.learning_rate, result.gradient_norm, progress.step + 1);

  progress.step += 1;
  progress.tokens += valid;
  progress.next_sample += config.train.global_batch;
  progress.losses.push_back(static_cast<float>(result.loss));
  return result;
}

/// A full disk does not end the run: the lines wait in memory until there is room. `waiting`
/// remembers that this was said.
void write_line(MetricsWriter& metrics, const StepMetrics& line, bool& waiting) {
  try {
    metrics.write(line);
    waiting = false;
  } catch (const Error& e) {
    if (!std::exchange(waiting, true))
      log::warn("{}: its lines wait in memory until that works", e.what());
  }
}

void meter_step(GpuMeter& meter, StepMetrics& line) {
  const GpuReading reading = meter.read(line.tokens);
  line.gpu_utilisation = reading.utilisation;
  line.gpu_memory_bytes = reading.memory_bytes;
  line.gpu_power_watts = reading.power_watts;
  line.joules_per_token = reading.joules_per_token;
}

/// `directory`: rank 0's, held by the caller until the end of the run is on record.
ExitStatus train(const RunConfig& requested, const Communicator& world,
                 std::optional<RunDirectory>& directory, RunRecord& record) {
  const auto begin = Clock::now();
  const auto start = Deadline::Clock::now();
  slurm::catch_stop_signals();
  // A file that is longer than `ulimit -f` allows is an error of write(), as on a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  log::set_rank(world.rank());
  const io::Attempt attempt = this_attempt();
  agree(world, [&] {
    if (world.rank() == 0) directory.emplace(requested.directory(), attempt);
  });
  // Its folder is in the run's, which is ours now. Whatever may hang comes after it.
  parallel::Watchdog watchdog(*parallel::parse_hang_timeout(requested.run.hang_timeout),
                              requested.directory(), world);
  const Compute compute = open_compute(requested.run, world);
  TrainingRun run(requested, world, compute);
  const RunConfig& config = run.config();
  agree(world, [&] {
    if (world.rank() != 0) return;
    if (!started_by_supervisor(config.directory())) withdraw_stop(config.directory());
    run.take_over(attempt);
    log::open_file(config.directory() + "/log.txt");
  });
  const std::string resumed = run.restore();
  // Not before: a run that is refused leaves the old run's configuration alone.
  agree(world, [&] {
    if (directory) directory->write_config(config, "effective configuration; " + version_line());
  });
  const double peak_flops =
      measure_peak_flops(compute.backend, config.model.precision == model::Precision::kBf16, world);
  print_header(run, peak_flops, compute.line);
  if (directory) record.started(config.directory(), world.size(), run.progress().step);
  if (!resumed.empty())
    log::info("continuing from {} after step {}; a rank read at most {} of its {}", resumed,
              run.progress().step, io::format_bytes(world.all_reduce_max(run.restored().read)),
              io::format_bytes(run.restored().checkpoint));

  std::optional<MetricsWriter> metrics;
  std::optional<EventFile> events;
  agree(world, [&] {
    if (world.rank() != 0) return;
    metrics.emplace(config.directory() + "/metrics.jsonl", run.progress().step);
    if (config.log.tensorboard)
      events.emplace(config.directory() + "/tensorboard", run.progress().step);
  });
  bool metrics_wait = false;
  MetricsTable table(config.train.steps);
  Stragglers stragglers(world);
  std::optional<GpuMeter> meter;
  if (!compute.pci_bus.empty()) meter.emplace(compute.pci_bus, world);
  // One rank that knows is enough.
  std::optional<slurm::JobEndWatch> job_end;
  if (const std::string job = slurm::job_address(); !job.empty() && world.rank() == 0)
    job_end.emplace(job);
  Deadline deadline(start, config.train.time_limit, std::nullopt);
  deadline.expect_save(expected_save_seconds(config));
  Saver saver(run, deadline);
  if (!resumed.empty()) saver.already_saved(run.progress().step);

  StepProfiler profiler(run.profile());
  StepTraffic traffic(run);
  StepTrace trace(config.log, world, compute.name);
  std::vector<double> step_seconds;
  const std::int64_t first_step = run.progress().step;
  // A resumed run remembers the validations before it. Rank 0 has them, and decides for all.
  Patience patience(config.train.patience);
  if (metrics)
    for (const double loss : metrics->validation_losses()) patience.note(loss);
  bool given_up = world.broadcast(std::int64_t{patience.exhausted()}, 0) != 0;
  std::string stop_reason = given_up ? patience.reason() : "";
  // A signal that came while the run was being set up costs no step. (Time that was short from the
  // start allows one: a run that is started again and again still gets on.)
  if (!given_up && run.progress().step < config.train.steps)
    stop_reason = wish_to_stop(world, Deadline(start, {}, std::nullopt), 0,
                               directory && stop_requested(config.directory()));
  while (run.progress().step < config.train.steps && stop_reason.empty()) {
    const auto step_begin = Clock::now();
    const double communication_before = run.communication_seconds(),
                 data_before = run.data_seconds();
    const std::int64_t tokens_before = run.progress().tokens;
    const double waited_before = flight::recorder().waited_seconds();
    profiler.begin_step();
    traffic.begin_step();
    trace.begin_step(run.progress().step + 1);
    const StepResult result = train_step(run);
    compute.backend.stream.synchronize();  // a device may still be at the update
    traffic.end_step();
    const double waited = flight::recorder().waited_seconds() - waited_before;
    const double worked = seconds_since(step_begin) - waited;
    const std::int64_t step = run.progress().step;
    flight::recorder().enter(Phase::kReport, step);
    profiler.end_step(seconds_since(step_begin), run.communication_seconds() - communication_before,
                      run.data_seconds() - data_before);
    run.require_ownership();

    StepMetrics line;
    line.step = run.progress().step;
    line.tokens = run.progress().tokens;
    line.loss = result.loss, line.grad_norm = result.gradient_norm,
    line.learning_rate = result.learning_rate;
    line.step_seconds = world.all_reduce_max(seconds_since(step_begin));
    line.tokens_per_second = static_cast<double>(line.tokens - tokens_before) / line.step_seconds;
    line.mfu = run.step_flops() / line.step_seconds / peak_flops;
    line.hfu = line.mfu * (1 + run.recomputed_step_flops() / run.step_flops());
    line.comm_seconds = world.all_reduce_max(run.communication_seconds() - communication_before);
    line.data_seconds = world.all_reduce_max(run.data_seconds() - data_before);
    line.peak_memory_bytes = world.all_reduce_max(
        compute.gpu != nullptr ? compute.gpu->memory().peak_bytes : peak_resident_bytes());

    step_seconds.push_back(line.step_seconds);
    watchdog.step_done(line.step_seconds);
    stragglers.step_done(step, worked);
    if (meter) meter_step(*meter, line);
    const bool finished = step == config.train.steps;
    if (config.train.validate_every > 0 && (step % config.train.validate_every == 0 || finished)) {
      flight::recorder().enter(Phase::kValidate, step);
      line.validation_loss = run.validate();
      flight::recorder().enter(Phase::kReport, step);
      patience.note(*line.validation_loss);
      given_up = !finished && world.broadcast(std::int64_t{patience.exhausted()}, 0) != 0;
      if (given_up) stop_reason = patience.reason();
    }
    if (metrics) write_line(*metrics, line, metrics_wait);
    if (events) events->add(line);
    record.reached(line.step);
    if (step % config.log.every == 0 || finished || step == first_step + 1)
      log::line(table.row(line));

    // The file `stop` is rank 0's to see.
    const bool wished = directory && stop_requested(config.directory());
    deadline.note_step(seconds_since(step_begin));
    if (job_end) deadline.set_job_end(job_end->end());
    const std::string wish = wish_to_stop(world, deadline, saver.pending(), wished);
    const bool early =
        config.train.stop_after > 0 && step - first_step >= config.train.stop_after && !finished;
    if (!finished && stop_reason.empty()) stop_reason = wish;
    if (early && stop_reason.empty())
      stop_reason = fmt::format("train.stop-after={}", config.train.stop_after);
    const bool regular = config.checkpoint.every > 0 && step % config.checkpoint.every == 0;
    if (regular || finished || !stop_reason.empty()) flight::recorder().enter(Phase::kSave, step);
    if (regular || finished || !stop_reason.empty())
      saver.save(finished || !stop_reason.empty());
    else
      saver.poll();
    trace.end_step();
  }
  trace.finish();
  flight::recorder().enter(Phase::kEnd, run.progress().step);
  saver.finish();
  agree(world, [&] {
    if (metrics) metrics->flush();
  });

  if (profiler.on()) {
    const StepProfile profile = profiler.result(peak_flops / world.size());
    log::info("{}", profile_text(profile));
    agree(world, [&] {
      if (directory) directory->write_file("profile.json", profile_json(profile));
    });
  }
  const Outcome outcome = measured_outcome(step_seconds, traffic, run);
  if (outcome.median_seconds > 0)
    log::info("MFU {:.1f} %, HFU {:.1f} % in the median step",
              100 * run.step_flops() / outcome.median_seconds / peak_flops,
              100 * (run.step_flops() + run.recomputed_step_flops()) / outcome.median_seconds /
                  peak_flops);
  if (meter) log::info("{}", meter->summary());
  agree(world, [&] {
    if (!directory) return;
    const Prediction prediction = predict_run(run, outcome.ranks_per_node);
    log::info("{}", prediction_text(prediction, outcome));
    directory->write_file("plan.json", prediction_json(prediction, outcome));
  });
  const bool planned = run.progress().step < config.train.steps && !given_up;
  if (!stop_reason.empty())
    log::info("stopped after step {}: {}", run.progress().step, stop_reason);
  const bool never = config.checkpoint.resume == "never";
  log::info("{} steps in {:.1f} s; {}", run.progress().step - first_step, seconds_since(begin),
            !planned ? "done"
            : never  ? "checkpoint.resume=auto continues"
                     : "the same command continues");
  return planned ? ExitStatus::kRequeue : ExitStatus::kDone;
}

}  // namespace

ExitStatus train_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "train", "trains, on every rank that runs this command",
      {{"config", "FILE", "settings, an INI file; --section.key VALUE overrides it"}},
      "mpirun -n 2 longspan train --config configs/tiny.ini --mesh.context 2", true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  const slurm::LaunchedWorld launched = check_world_before_mpi();
  std::optional<AgreedError> failure;
  std::optional<RunDirectory> directory;
  RunRecord record;
  {
    const MpiRuntime mpi;
    try {
      const Communicator world = Communicator::world();
      check_world_size(launched, world.size());
      log::set_rank(world.rank());
      RunConfig config;
      agree(world, [&] { config = parse_config(args.text("config"), args.settings()); });
      const ExitStatus status = train(config, world, directory, record);
      record.ended(status);
      return status;
    } catch (const AgreedError& e) {
      record.ended(e.status(), e.what());
      failure = e;  // everybody is here: MPI is left in good order before the error goes on
    }
  }
  throw *failure;
}

}  // namespace longspan::launcher
