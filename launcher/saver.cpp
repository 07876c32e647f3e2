#include "launcher/saver.hpp"

#include <chrono>
#include <exception>

#include "launcher/duration.hpp"
#include "model/flops.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {

using Clock = std::chrono::steady_clock;

Saver::Saver(TrainingRun& run, Deadline& deadline) : run_(run), deadline_(deadline) {}

Saver::~Saver() {
  try {
    settle();
  } catch (const std::exception&) {
    // Another error is on its way to the user.
  }
}

void Saver::save(bool last) {
  const std::int64_t step = run_.progress().step;
  if (saved_step_ == step) return;
  const auto begin = Clock::now();
  settle();
  try {
    if (!last && run_.overlaps_saves()) {
      run_.save(true);
      in_the_way_ = seconds_since(begin);
      pending_ = 1;
      return;
    }
    const std::string path = run_.save(false);
    saved(step);
    deadline_.note_save(seconds_since(begin));
    log::info("saved {} in {:.2f} s", path, seconds_since(begin));
  } catch (const AgreedError& e) {
    run_.require_ownership();
    not_saved(step, e.what());
  }
}

void Saver::poll() {
  const auto outcome = run_.saver().take();
  if (!outcome) return;
  pending_ = 0;
  if (outcome->fenced) return;  // told after the next step, by all ranks
  deadline_.note_save(in_the_way_ + outcome->seconds);
  if (!outcome->failure.empty()) return not_saved(outcome->step, outcome->failure);
  saved(outcome->step);
  log::info("saved {} in {:.2f} s, {:.2f} s of it in the way", outcome->path,
            in_the_way_ + outcome->seconds, in_the_way_ + outcome->waited);
}

void Saver::finish() {
  settle();
  run_.require_ownership();
  if (failure_) throw AgreedError("the last save failed: " + *failure_);
}

void Saver::settle() {
  run_.saver().wait();
  poll();
}

void Saver::saved(std::int64_t step) {
  saved_step_ = step;
  failure_.reset();
}

void Saver::not_saved(std::int64_t step, const std::string& why) {
  failure_ = why;
  log::warn("step {} was not saved: {}", step, why);
}

double expected_save_seconds(const RunConfig& config) {
  constexpr double kBytesPerSecond = 200e6;
  return 0.5 + 12 * static_cast<double>(model::parameter_count(config.model)) / kBytesPerSecond;
}

}  // namespace longspan::launcher
