#include "slurm/remaining_time.hpp"

#include <algorithm>
#include <charconv>
#include <utility>
#include <vector>

#include "slurm/process.hpp"

namespace longspan::slurm {
namespace {

/// The numbers between colons; empty if one of them is none, or too large.
std::vector<std::int64_t> numbers_of(std::string_view text) {
  constexpr std::int64_t kLargest = 100'000'000;
  std::vector<std::int64_t> numbers;
  for (;;) {
    const std::string_view part = text.substr(0, text.find(':'));
    std::int64_t number = 0;
    const auto [rest, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (error != std::errc() || rest != part.data() + part.size() || number < 0 ||
        number > kLargest)
      return {};
    numbers.push_back(number);
    if (part.size() == text.size()) return numbers;
    text.remove_prefix(part.size() + 1);
  }
}

}  // namespace

std::optional<std::int64_t> parse_slurm_time(std::string_view text, bool bare_minutes) {
  std::int64_t days = 0;
  const std::size_t dash = text.find('-');
  if (dash != std::string_view::npos) {
    const auto number = numbers_of(text.substr(0, dash));
    if (number.size() != 1) return std::nullopt;
    days = number[0];
    text.remove_prefix(dash + 1);
  }
  const auto n = numbers_of(text);
  if (n.empty() || n.size() > 3) return std::nullopt;
  const auto at = [&](std::size_t i) { return i < n.size() ? n[i] : 0; };
  if (dash != std::string_view::npos) return days * 86400 + n[0] * 3600 + at(1) * 60 + at(2);
  if (n.size() == 3) return n[0] * 3600 + n[1] * 60 + n[2];
  if (n.size() == 2) return n[0] * 60 + n[1];
  return bare_minutes ? n[0] * 60 : n[0];
}

std::optional<std::int64_t> query_seconds_left(const std::string& id) {
  const ProcessOutcome outcome = run_process({"squeue", "--noheader", "--jobs", id, "--format=%L"},
                                             "", std::chrono::seconds(10));
  if (!outcome.fine()) return std::nullopt;
  std::string text = outcome.out.substr(0, outcome.out.find('\n'));
  std::erase(text, ' ');
  return parse_slurm_time(text);
}

JobEndWatch::JobEndWatch(std::string id, std::chrono::seconds every)
    : id_(std::move(id)), thread_([this, every] { watch(every); }) {}

JobEndWatch::~JobEndWatch() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::optional<JobEndWatch::Clock::time_point> JobEndWatch::end() const {
  const std::lock_guard lock(mutex_);
  return end_;
}

void JobEndWatch::watch(std::chrono::seconds every) {
  std::unique_lock lock(mutex_);
  while (!over_) {
    lock.unlock();
    const auto now = Clock::now();
    const auto left = query_seconds_left(id_);
    lock.lock();
    // No answer is no news: what was known stays.
    if (left) end_ = now + std::chrono::seconds(*left);
    wake_.wait_for(lock, every, [this] { return over_; });
  }
}

}  // namespace longspan::slurm
