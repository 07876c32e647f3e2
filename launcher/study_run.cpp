#include "launcher/study_run.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "launcher/child_process.hpp"
#include "launcher/run_history.hpp"
#include "launcher/run_state.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

using std::chrono::milliseconds;

io::Descriptor output_file(const std::string& path) {
  io::Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file) io::fail_errno(path, "cannot write", errno);
  return file;
}

/// The first line of `path` that is no warning, without "longspan: "; empty if there is none.
std::string first_error_line(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  constexpr std::string_view kProgram = "longspan: ", kWarning = "longspan: warning: ";
  for (std::string line; std::getline(file, line);)
    if (!line.empty() && !line.starts_with(kWarning))
      return line.starts_with(kProgram) ? line.substr(kProgram.size()) : line;
  return "";
}

/// A run that was killed with its study may be about to leave.
bool wait_until_free(const std::string& directory, const StopSignals& signals) {
  constexpr int kTenths = 600;
  for (int i = 0; i < kTenths && run_is_held(directory) && !signals.stop_wished(); ++i)
    signals.wait_readable({-1, -1}, milliseconds(100));
  if (run_is_held(directory) && !signals.stop_wished())
    fail("{} is the directory of a run that goes on: end it with longspan stop, then try again",
         directory);
  return !signals.stop_wished();
}

/// The weights of so short a run are of no use to anybody.
void remove_checkpoints(const std::string& directory) {
  try {
    io::remove_path(directory + "/checkpoints");
  } catch (const Error& e) {
    log::warn("{}", e.what());
  }
}

RunResult result_of(const StudyFolder& folder, std::size_t point, std::int64_t repeat, int status) {
  const std::string directory = folder.run_directory(point, repeat);
  RunResult result;
  try {
    if (status == 0)
      return collect_run(directory, folder.spec().warmup, folder.study().points[point].tokens());
    result.error = first_error_line(directory + ".err");
  } catch (const Error& e) {
    result.error = e.what();
  }
  if (result.error.empty())
    result.error = fmt::format("it ended with status {} and said nothing", status);
  return result;
}

std::string outcome_text(const RunResult& result) {
  return result.failed() ? "failed: " + result.error
                         : fmt::format("{:.4g} s a step, {:.5g} tokens/s", result.numbers.seconds,
                                       result.numbers.tokens_per_second);
}

}  // namespace

std::vector<PointResult> StudyState::rows(const StudyFolder& folder) const {
  return summarise(folder.spec(), folder.study(), results, unfinished);
}

std::vector<std::string> launch_arguments(const StudyFolder& folder, std::size_t point,
                                          std::int64_t repeat) {
  const StudyPoint& p = folder.study().points[point];
  std::vector<std::string> words = {
      "launch", "--ranks",  std::to_string(p.ranks()), "--max-restarts",
      "0",      "--config", folder.config_path()};
  const std::vector<std::string> settings = settings_of(p);
  words.insert(words.end(), settings.begin(), settings.end());
  words.insert(words.end(),
               {"--run.name", p.name, "--run.directory", folder.run_directory(point, repeat)});
  return words;
}

int run_child(const std::vector<std::string>& words, const std::string& out,
              const std::string& errors, const StopSignals& signals) {
  io::Descriptor out_file = output_file(out), error_file = output_file(errors);
  ChildProgram program;
  program.words = words;
  program.out = out_file.get(), program.errors = error_file.get();
  program.signal_mask = &signals.mask();
  const pid_t child = start_child(program);
  bool told = false;
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) != child) {
    if (signals.interrupted()) {
      ::kill(child, SIGINT);
    } else if (signals.stop_wished() && !std::exchange(told, true)) {
      ::kill(child, SIGTERM);
    }
    signals.wait_readable({-1, -1}, milliseconds(100));
  }
  return exit_status(status);
}

StudyState run_study(const StudyFolder& folder, const Say& say) {
  const StopSignals signals;
  const auto& points = folder.study().points;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  StudyState state;
  state.results = folder.results();
  state.unfinished.assign(points.size(),
                          std::vector<Unfinished>(static_cast<std::size_t>(folder.spec().repeats),
                                                  Unfinished::kNotRun));
  std::size_t number = 0;
  const std::size_t all = points.size() * static_cast<std::size_t>(folder.spec().repeats);
  for (std::int64_t repeat = 0; repeat < folder.spec().repeats; ++repeat)
    for (std::size_t p = 0; p < points.size(); ++p) {
      ++number;
      auto& result = state.results[p][static_cast<std::size_t>(repeat)];
      if (result) continue;
      const std::string directory = folder.run_directory(p, repeat);
      if (signals.stop_wished() || !wait_until_free(directory, signals)) {
        state.interrupted = true;
        return state;
      }
      // Half a run is of no use: its times are of a start.
      io::remove_path(directory);
      io::make_directories(io::parent_path(directory));
      std::vector<std::string> words = launch_arguments(folder, p, repeat);
      words.insert(words.begin(), self);
      const int status = run_child(words, directory + ".out", directory + ".err", signals);
      const bool stopped = status == static_cast<int>(ExitStatus::kRequeue);
      if (status != 0 && (stopped || signals.stop_wished())) {
        state.interrupted = true;
        return state;
      }
      result = result_of(folder, p, repeat, status);
      folder.write_result(p, repeat, *result);
      remove_checkpoints(directory);
      folder.write_tables(state.rows(folder));
      say(fmt::format("{} of {}: {}{}: {}", number, all, points[p].name,
                      folder.spec().repeats > 1 ? fmt::format(", run {}", repeat + 1) : "",
                      outcome_text(*result)));
    }
  return state;
}

}  // namespace longspan::launcher
