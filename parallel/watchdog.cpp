#include "parallel/watchdog.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "parallel/abort.hpp"
#include "parallel/agree.hpp"
#include "parallel/log.hpp"

namespace longspan::parallel {
namespace {

namespace fs = std::filesystem;
using flight::Clock;

constexpr double kLeast = 60, kMedians = 10;     // the automatic timeout
constexpr double kLeastPatience = 1800;          // of ranks that are alive, s
constexpr double kAnswer = 3, kLongAnswer = 60;  // longest wait for answers, s
constexpr double kJudge = 30;                    // after which a judge is thought to be dead, s
constexpr std::size_t kStepsKept = 101;
constexpr std::int64_t kFirstSteps = 3;  // compile kernels and touch memory for the first time

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string node_name() {
  std::array<char, 256> node = {};
  ::gethostname(node.data(), node.size() - 1);
  return node.data();
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Under another name first: no reader ever sees half of it. False if the disk is full.
bool replace_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (out && std::rename(temporary.c_str(), path.c_str()) == 0) return true;
  std::remove(temporary.c_str());
  return false;
}

std::int64_t read_number(const std::string& path) {
  const std::string text = read_file(path);
  std::int64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

std::string rank_file(const char* what, int rank) {
  return fmt::format("{}-{:05}", what, rank);
}

/// What the system says of a process of this node.
std::string condition_of(std::int64_t process) {
  std::ifstream status(fmt::format("/proc/{}/status", process));
  if (!status) return "is gone";
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("State:", 0) != 0) continue;
    const std::size_t letter = line.find_first_not_of(" \t", 6);
    const char state = letter == std::string::npos ? '?' : line[letter];
    if (state == 'T' || state == 't') return "is stopped (SIGSTOP, or a debugger)";
    if (state == 'Z' || state == 'X') return "is dead";
    if (state == 'D') return "hangs in the system (a disk or network file system?)";
  }
  return "";
}

}  // namespace

std::optional<HangTimeout> parse_hang_timeout(const std::string& text) {
  if (text == "auto") return HangTimeout{};
  if (text == "off") return HangTimeout{false, 0};
  double seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (seconds == 0) return HangTimeout{};
  if (!(seconds >= 1) || !std::isfinite(seconds)) return std::nullopt;
  return HangTimeout{true, seconds};
}

double hang_limit(const HangTimeout& timeout, const std::deque<double>& step_seconds) {
  if (timeout.seconds > 0) return timeout.seconds;
  if (step_seconds.empty()) return kLeast;
  std::vector<double> sorted(step_seconds.begin(), step_seconds.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return std::max(kLeast, kMedians * *middle);
}

double patient_limit(double limit) {
  return std::max(kLeastPatience, kMedians * limit);
}

Watchdog::Watchdog(const HangTimeout& timeout, const std::string& run_directory,
                   const Communicator& world)
    : timeout_(timeout),
      folder_(run_directory + "/watch"),
      node_(node_name()),
      rank_(world.rank()),
      ranks_(world.size()) {
  // The ranks' settings have not been compared yet.
  if (ranks_ == 1 || world.all_reduce_min(std::int64_t{timeout.enabled}) == 0) return;
  // What an earlier run has left goes first. The number tells this run from any other.
  std::int64_t token = std::chrono::system_clock::now().time_since_epoch().count();
  bool made = true;
  if (rank_ == 0) {
    std::error_code error;
    fs::remove_all(folder_, error);
    fs::create_directories(folder_, error);
    made = replace_file(file("run"), std::to_string(token)) && replace_file(file("question"), "0");
  }
  token = world.broadcast(token, 0);
  const bool shared = read_number(file("run")) == token;
  if (shared) write_state(false);
  if (world.all_reduce_min(std::int64_t{made && shared}) == 0) {
    log::warn(
        "{} cannot be written or is not the same folder on all nodes: a rank that hangs will not "
        "be "
        "noticed; set run.directory to a place that all nodes share",
        folder_);
    return;
  }
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    wake_.notify_all();
  }
  thread_.join();
  write_state(true);
}

void Watchdog::step_done(double seconds) {
  const std::lock_guard lock(mutex_);
  ++steps_;
  step_seconds_.push_back(seconds);
  if (step_seconds_.size() > kStepsKept) step_seconds_.pop_front();
}

bool Watchdog::stopping() const {
  const std::lock_guard lock(mutex_);
  return stop_;
}

void Watchdog::watch() {
  auto last = Clock::now();
  std::unique_lock lock(mutex_);
  while (!stop_) {
    const double limit = hang_limit(timeout_, step_seconds_);
    const double period = std::clamp(limit / 20, 0.05, 1.0);
    wake_.wait_for(lock, std::chrono::duration<double>(period), [this] { return stop_; });
    if (stop_) return;
    lock.unlock();
    const auto now = Clock::now();
    const double passed = std::chrono::duration<double>(now - last).count();
    last = now;
    // A process that was stopped, with all others or alone, has not waited meanwhile.
    look(std::min(passed, 2 * period));
    lock.lock();
  }
}

void Watchdog::look(double credit) {
  double limit = 0;
  bool first_steps = false;
  {
    const std::lock_guard lock(mutex_);
    limit = hang_limit(timeout_, step_seconds_);
    first_steps = steps_ < kFirstSteps;
  }
  const std::int64_t question = read_number(file("question"));
  since_written_ += credit;
  if (question > answered_ || since_written_ > limit / 4) {
    const bool asked = question > answered_;
    answered_ = std::max(answered_, question);
    if (asked) write_records();
    write_state(false);
    since_written_ = 0;
  }

  const RankState state = own_state();
  std::vector<Age> ages;
  for (const WatchedGroup& group : state.groups) {
    if (!group.open) continue;
    const auto before = std::find_if(ages_.begin(), ages_.end(), [&](const Age& a) {
      return a.group.is(group) && a.group.begun == group.begun;
    });
    Age age = before == ages_.end() ? Age{group, 0, 0} : *before;
    age.seconds += credit;
    ages.push_back(age);
  }
  ages_ = std::move(ages);
  for (Age& age : ages_) {
    if (age.seconds < std::max(limit, age.ask_again)) continue;
    const bool saving = state.saving || age.group.saving;
    age.ask_again = age.seconds + limit;
    decide(age.group, age.seconds, first_steps || age.group.saving, saving);
    return;
  }
}

void Watchdog::decide(const WatchedGroup& group, double waited, bool patient, bool saving) {
  const int judge = ::open(file("verdict").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (judge < 0 && errno == EEXIST) {
    // Another rank speaks for all, unless it was stopped itself meanwhile.
    if (verdict_seen_ == 0) verdict_seen_ = waited;
    if (waited > verdict_seen_ + kJudge) {
      std::remove(file("verdict").c_str());
      verdict_seen_ = 0;
    }
    for (Age& age : ages_) age.ask_again = 0;  // look again at the next opportunity
    return;
  }
  if (judge >= 0) ::close(judge);
  verdict_seen_ = 0;

  const std::int64_t question = read_number(file("question")) + 1;
  replace_file(file("question"), std::to_string(question));
  answered_ = question;
  write_records();
  write_state(false);
  double limit = 0;
  {
    const std::lock_guard lock(mutex_);
    limit = hang_limit(timeout_, step_seconds_);
  }
  const double for_answers = saving ? std::clamp(limit, kAnswer, kLongAnswer) : kAnswer;
  std::vector<RankState> states(static_cast<std::size_t>(ranks_));
  const auto begin = Clock::now();
  for (bool all = false; !all && !stopping();) {
    all = true;
    for (int r = 0; r < ranks_; ++r) {
      RankState& s = states[static_cast<std::size_t>(r)];
      if (s.answered >= question || s.ended) continue;
      if (auto read = parse_rank_state(read_file(file(rank_file("rank", r))))) s = std::move(*read);
      s.rank = r;
      all = all && (s.answered >= question || s.ended);
    }
    if (std::chrono::duration<double>(Clock::now() - begin).count() > for_answers) break;
    if (!all) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }

  // Whatever it was, it may be over.
  const RankState mine = own_state();
  int index = -1;
  for (std::size_t g = 0; g < mine.groups.size(); ++g)
    if (mine.groups[g].is(group) && mine.groups[g].open && mine.groups[g].begun == group.begun)
      index = static_cast<int>(g);
  if (index < 0 || stopping()) {
    std::remove(file("verdict").c_str());
    return;
  }
  states[static_cast<std::size_t>(rank_)] = mine;
  states[static_cast<std::size_t>(rank_)].answered = question;
  const HangVerdict verdict = find_fault(states, question, rank_, index);
  const bool alive = verdict.fault != Fault::kSilent;
  if (alive && (patient || verdict.patient) && waited < patient_limit(limit)) {
    std::remove(file("verdict").c_str());
    return;
  }
  end_job(verdict, states, waited);
}

void Watchdog::end_job(const HangVerdict& verdict, const std::vector<RankState>& states,
                       double waited) {
  constexpr std::size_t kShown = 16;
  const double now = now_seconds();
  std::vector<std::string> conditions(states.size());
  for (const int rank : verdict.culprits) {
    const RankState& s = states[static_cast<std::size_t>(rank)];
    if (verdict.fault == Fault::kSilent && s.node == node_)
      conditions[static_cast<std::size_t>(rank)] = condition_of(s.process);
  }
  const std::string message = describe(verdict, states, conditions, waited, now);
  std::string table;
  for (const RankState& state : states) table += "  " + describe(state, now) + "\n";
  replace_file(file("hang.txt"), message + "\n" + table);
  // MPI_Abort asks the launcher to kill all; should that never come back, leaving is all there is.
  std::thread([] {
    std::this_thread::sleep_for(std::chrono::seconds(10));
    std::_Exit(static_cast<int>(ExitStatus::kFailed));
  }).detach();
  std::string details = states.size() <= kShown ? "\n" + table : "";
  if (!details.empty()) details.pop_back();
  abort_job(fmt::format("{}; what each rank did last: {}, flight-*.json beside it{}", message,
                        file("hang.txt"), details),
            ExitStatus::kFailed);
}

RankState Watchdog::own_state() const {
  RankState state = state_of(flight::recorder().snapshot(false), Clock::now());
  state.rank = rank_;
  state.node = node_;
  state.process = ::getpid();
  state.answered = answered_;
  state.written = now_seconds();
  return state;
}

void Watchdog::write_state(bool ended) {
  RankState state = own_state();
  state.ended = ended;
  replace_file(file(rank_file("rank", rank_)), to_json(state) + "\n");
}

void Watchdog::write_records() const {
  const flight::Snapshot all = flight::recorder().snapshot(true);
  const auto now = Clock::now();
  const double today = now_seconds();
  const auto date = [&](Clock::time_point t) {
    return today - std::chrono::duration<double>(now - t).count();
  };
  nlohmann::json records = nlohmann::json::array();
  for (const flight::Record& r : all.records) {
    const auto group = std::find_if(all.groups.begin(), all.groups.end(),
                                    [&](const flight::GroupState& g) { return g.id == r.group; });
    nlohmann::json one = {{"operation", flight::to_string(r.operation)},
                          {"element", flight::to_string(r.element)},
                          {"sequence", r.sequence},
                          {"bytes", r.bytes},
                          {"step", r.step},
                          {"phase", flight::to_string(r.phase)},
                          {"begin", date(r.begin)}};
    if (group != all.groups.end()) {
      one["group"] = group->name;
      one["copy"] = group->copy;
      one["ranks"] = to_ranges(group->members);
    }
    if (r.end) one["end"] = date(*r.end);
    if (r.failed) one["failed"] = true;
    records.push_back(std::move(one));
  }
  nlohmann::json whole = nlohmann::json::parse(to_json(own_state()));
  whole["records"] = std::move(records);
  replace_file(file(rank_file("flight", rank_) + ".json"), whole.dump(1) + "\n");
}

}  // namespace longspan::parallel
