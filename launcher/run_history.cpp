#include "launcher/run_history.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "io/file.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

std::string history_file(const std::string& run_directory) {
  return run_directory + "/history.jsonl";
}

double now() {
  using namespace std::chrono;
  return duration<double>(system_clock::now().time_since_epoch()).count();
}

/// `key` of the line if it is there with the type of `fallback`.
template <class T>
T value_or(const nlohmann::json& line, const char* key, T fallback) {
  const auto at = line.find(key);
  if (at == line.end()) return fallback;
  if constexpr (std::is_same_v<T, std::string>) {
    return at->is_string() ? at->get<std::string>() : fallback;
  } else if constexpr (std::is_floating_point_v<T>) {
    return at->is_number() ? at->get<T>() : fallback;
  } else {
    return at->is_number_integer() ? at->get<T>() : fallback;
  }
}

}  // namespace

void append_event(const std::string& run_directory, RunEvent event) {
  if (event.time == 0) event.time = now();
  nlohmann::ordered_json line = {{"time", event.time}, {"event", event.event}};
  if (!event.job.empty()) line["job"] = event.job;
  line["restart"] = event.restart;
  if (event.step >= 0) line["step"] = event.step;
  if (event.ranks > 0) line["ranks"] = event.ranks;
  if (event.status >= 0) line["status"] = event.status;
  if (!event.where.empty()) line["where"] = event.where;
  if (!event.note.empty()) line["note"] = event.note;
  // One write() to a file opened for appending: lines of several writers do not mix. A line of a
  // writer that crashed may lack its end, so every line also begins one.
  const std::string text =
      fmt::format("\n{}\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));

  io::make_directories(run_directory);
  const std::string path = history_file(run_directory);
  const io::Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file) io::fail_errno(path, "open", errno);
  const ssize_t written = ::write(file.get(), text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size()))
    io::fail_errno(path, "write", written < 0 ? errno : ENOSPC);
}

std::vector<RunEvent> read_history(const std::string& run_directory) {
  std::vector<RunEvent> events;
  std::ifstream file(history_file(run_directory), std::ios::binary);
  for (std::string text; std::getline(file, text);) {
    const auto line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object()) continue;
    RunEvent event;
    event.time = value_or(line, "time", 0.0);
    event.event = value_or(line, "event", std::string());
    if (event.event.empty()) continue;
    event.job = value_or(line, "job", std::string());
    event.restart = value_or(line, "restart", 0);
    event.step = value_or(line, "step", std::int64_t{-1});
    event.ranks = value_or(line, "ranks", 0);
    event.status = value_or(line, "status", -1);
    event.where = value_or(line, "where", std::string());
    event.note = value_or(line, "note", std::string());
    events.push_back(std::move(event));
  }
  return events;
}

std::string stop_file(const std::string& run_directory) {
  return run_directory + "/stop";
}

void request_stop(const std::string& run_directory) {
  const std::string path = stop_file(run_directory);
  const io::Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (!file) io::fail_errno(path, "create", errno);
}

bool stop_requested(const std::string& run_directory) {
  return io::path_exists(stop_file(run_directory));
}

void withdraw_stop(const std::string& run_directory) {
  io::remove_path(stop_file(run_directory));
}

}  // namespace longspan::launcher
