#include "launcher/run_state.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>

#include "io/file.hpp"
#include "launcher/ini.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

double seconds(const timespec& time) {
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::string this_host() {
  std::array<char, 256> name = {};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// "node02:4711"
struct Where {
  std::string host;
  pid_t process = 0;
};
Where read_where(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) return {};
  return {text.substr(0, colon), static_cast<pid_t>(std::atol(text.c_str() + colon + 1))};
}

double number(const nlohmann::json& line, const char* key) {
  const auto at = line.find(key);
  return at != line.end() && at->is_number() ? at->get<double>() : 0;
}

/// train.steps of config.ini, without judging the rest of it: it may be of another version.
std::int64_t steps_of(const std::string& config) {
  std::ifstream file(config, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> problems;
  std::int64_t steps = 0;
  for (const IniEntry& entry : parse_ini_lines(text, config, problems))
    if (entry.name == "train.steps")
      std::from_chars(entry.value.data(), entry.value.data() + entry.value.size(), steps);
  return steps;
}

}  // namespace

std::string to_string(RunState state) {
  switch (state) {
    case RunState::kPending:
      return "pending";
    case RunState::kRunning:
      return "running";
    case RunState::kRestarting:
      return "restarting";
    case RunState::kRequeued:
      return "waiting for requeue";
    case RunState::kDone:
      return "done";
    case RunState::kStopped:
      return "stopped";
    case RunState::kFailed:
      return "failed";
    case RunState::kGone:
      return "gone";
    case RunState::kUnknown:
      break;
  }
  return "unknown";
}

bool goes_on(RunState state) {
  return state == RunState::kPending || state == RunState::kRunning ||
         state == RunState::kRestarting || state == RunState::kRequeued;
}

std::optional<MetricsTail> read_metrics_tail(const std::string& path) {
  const io::Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat about = {};
  if (!file || ::fstat(file.get(), &about) != 0 || !S_ISREG(about.st_mode)) return std::nullopt;
  // A line has some 300 bytes.
  constexpr off_t kEnd = 8192;
  std::string text(static_cast<std::size_t>(std::min(about.st_size, kEnd)), '\0');
  const off_t begin = about.st_size - static_cast<off_t>(text.size());
  const ssize_t got = ::pread(file.get(), text.data(), text.size(), begin);
  if (got <= 0) return std::nullopt;
  text.resize(static_cast<std::size_t>(got));

  std::optional<MetricsTail> tail;
  double step_seconds = 0;
  int lines = 0;
  // The first line may lack its beginning; then it does not parse, or is told by that.
  for (std::size_t at = begin == 0 ? 0 : text.find('\n') + 1, end;
       (end = text.find('\n', at)) != std::string::npos; at = end + 1) {
    const auto line = nlohmann::json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                            text.begin() + static_cast<std::ptrdiff_t>(end),
                                            nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) continue;
    tail = MetricsTail{line["step"].get<std::int64_t>(), number(line, "loss"),
                       number(line, "tokens_per_second"), 0, seconds(about.st_mtim)};
    step_seconds += number(line, "step_seconds");
    ++lines;
  }
  if (tail) tail->step_seconds = step_seconds / lines;
  return tail;
}

CheckpointSeen newest_checkpoint_seen(const std::string& run_directory) {
  constexpr std::string_view kPrefix = "step-";
  constexpr std::size_t kDigits = 10;
  CheckpointSeen newest;
  for (const std::string& name : io::list_directory(run_directory + "/checkpoints")) {
    if (!name.starts_with(kPrefix) || name.size() != kPrefix.size() + kDigits) continue;
    std::int64_t step = -1;
    const auto [end, error] =
        std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
    if (error != std::errc() || end != name.data() + name.size() || step <= newest.step) continue;
    newest.step = step;
    newest.path = run_directory + "/checkpoints/" + name;
  }
  struct stat about = {};
  if (newest.step >= 0 && ::stat(newest.path.c_str(), &about) == 0)
    newest.written = seconds(about.st_mtim);
  return newest;
}

bool is_run(const std::string& directory) {
  for (const char* name : {"/history.jsonl", "/config.ini", "/metrics.jsonl", "/checkpoints"})
    if (io::path_exists(directory + name)) return true;
  return false;
}

bool run_is_held(const std::string& run_directory) {
  const std::string path = run_directory + "/.lock";
  const io::Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return false;
  // Given back at once; a run that wants it at this moment tries again.
  return ::flock(file.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

RunFacts read_run(const std::string& directory) {
  RunFacts facts;
  facts.directory = directory;
  // Before the history: who gives the lock back has written there how it ended.
  facts.held = run_is_held(directory);
  facts.history = read_history(directory);
  facts.metrics = read_metrics_tail(directory + "/metrics.jsonl");
  facts.checkpoint = newest_checkpoint_seen(directory);
  facts.steps = steps_of(directory + "/config.ini");
  const std::string host = this_host();
  for (const RunEvent& event : facts.history) {
    const Where where = read_where(event.where);
    if (event.event == "started") facts.elsewhere = !where.host.empty() && where.host != host;
    if (event.event == "restarted")
      facts.supervisor_alive =
          where.process > 0 &&
          (where.host != host || ::kill(where.process, 0) == 0 || errno == EPERM);
  }
  return facts;
}

namespace {

/// A run that writes nothing for so long is no more: ten steps, and at least two minutes.
bool writes(const RunFacts& facts, double now) {
  constexpr double kLeast = 120, kSteps = 10;
  double last = facts.history.empty() ? 0 : facts.history.back().time;
  double longest = kLeast;
  if (facts.metrics) {
    last = std::max(last, facts.metrics->written);
    longest = std::max(longest, kSteps * facts.metrics->step_seconds);
  }
  return now - last < longest;
}

/// What the last event leaves open is told by the lock, the processes and the queue.
RunState state_after(const RunEvent& last, const RunFacts& facts, const Queue& queue,
                     const QueuedJob& queued, double now) {
  const bool waits = queued.state == "PENDING" || queued.state == "CONFIGURING" ||
                     queued.state == "REQUEUED" || queued.state == "REQUEUE_HOLD" ||
                     queued.state == "SUSPENDED";
  const bool runs = queued.state == "RUNNING" || queued.state == "COMPLETING";
  const bool job_known = queue.has_value() && !last.job.empty();
  if (facts.held) return RunState::kRunning;
  if (last.event == "submitted") {
    if (waits) return RunState::kPending;
    if (runs) return RunState::kRunning;
    return job_known ? RunState::kGone : RunState::kPending;
  }
  if (last.event == "requeued" || last.event == "chained") {
    if (waits) return RunState::kRequeued;
    if (runs) return RunState::kRunning;
    return job_known ? RunState::kGone : RunState::kRequeued;
  }
  if (last.event == "gave-up") return RunState::kFailed;
  if (last.event == "restarted")
    return facts.supervisor_alive ? RunState::kRestarting : RunState::kGone;
  if (last.event == "ended" || last.event == "job-ended") {
    if (last.status == static_cast<int>(ExitStatus::kDone)) return RunState::kDone;
    if (waits) return RunState::kRequeued;
    return last.status == static_cast<int>(ExitStatus::kRequeue) ? RunState::kStopped
                                                                 : RunState::kFailed;
  }
  // It has started, and not said that it ended.
  if (waits) return RunState::kRequeued;
  if (runs) return RunState::kRunning;
  if (job_known) return RunState::kGone;
  // On another machine whose locks do not reach us: as long as it writes.
  return facts.elsewhere && writes(facts, now) ? RunState::kRunning : RunState::kGone;
}

RunState state_without_history(const RunFacts& facts) {
  if (facts.held) return RunState::kRunning;
  if (!facts.metrics || facts.steps == 0) return RunState::kUnknown;
  if (facts.metrics->step >= facts.steps) return RunState::kDone;
  return facts.checkpoint.step == facts.metrics->step ? RunState::kStopped : RunState::kUnknown;
}

}  // namespace

RunStatus status_of(const RunFacts& facts, const Queue& queue, double now) {
  RunStatus status;
  int counted = 0;
  for (const RunEvent& event : facts.history) {
    if (!event.job.empty()) status.job = event.job;
    if (event.event == "chained") ++status.restarts;
    if (event.event != "started") continue;
    // Every job, and every `launch`, counts from 0.
    status.restarts += event.restart >= counted ? event.restart - counted : event.restart;
    counted = event.restart;
  }
  if (queue)
    if (const auto job = queue->find(status.job); job != queue->end()) status.queued = job->second;
  status.state = facts.history.empty()
                     ? state_without_history(facts)
                     : state_after(facts.history.back(), facts, queue, status.queued, now);
  const std::int64_t step = facts.metrics ? facts.metrics->step : 0;
  if (goes_on(status.state) && facts.metrics && facts.metrics->step_seconds > 0 &&
      facts.steps > step)
    status.eta_seconds = facts.metrics->step_seconds * static_cast<double>(facts.steps - step);
  if (!facts.history.empty() &&
      (status.state == RunState::kFailed || status.state == RunState::kRestarting))
    status.note = facts.history.back().note;
  if (status.state == RunState::kPending || status.state == RunState::kRequeued)
    status.note = status.queued.reason == "None" ? "" : status.queued.reason;
  if (status.state == RunState::kGone)
    status.note = facts.history.back().event == "submitted"
                      ? "its job is not in the queue any more"
                      : "it has not said how it ended; the same command continues";
  return status;
}

}  // namespace longspan::launcher
