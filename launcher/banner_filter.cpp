#include <fmt/format.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "launcher/launch.hpp"

namespace longspan::launcher {
namespace {

/// mpirun frames its messages in lines of 74 dashes.
bool is_frame_line(const std::string& line) {
  constexpr std::size_t kDashes = 40;
  return line.size() > kDashes && line.find_first_not_of("-\r\n") == std::string::npos;
}

/// Messages about a rank's exit status, MPI_Abort, or peers that miss a dead rank: the rank has
/// printed the cause.
bool is_echo(const std::string& text) {
  for (const std::string_view known :
       {"Primary job  terminated normally", "exited with non-zero status", "MPI_ABORT was invoked",
        "without calling \"finalize\"", "unexpectedly disconnected", "exiting improperly"})
    if (text.find(known) != std::string::npos) return true;
  return false;
}

/// "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 11 (Segmentation
/// fault)." as one of our lines. Empty if `text` is something else.
std::string death_by_signal(const std::string& text) {
  constexpr std::string_view kRank = "process rank ", kNode = " on node ",
                             kSignal = " exited on signal ";
  const std::size_t rank = text.find(kRank), node = text.find(kNode), signal = text.find(kSignal);
  if (rank == std::string::npos || node == std::string::npos || signal == std::string::npos ||
      node > signal)
    return "";
  const std::size_t number = rank + kRank.size(), name = node + kNode.size();
  return death_line(
      fmt::format("rank {} ({})", text.substr(number, text.find(' ', number) - number),
                  text.substr(name, signal - name)),
      std::atoi(text.c_str() + signal + kSignal.size()));
}

/// "The first process to do so was: Process name: [[24351,1],3] Exit code: 7".
std::optional<BannerFilter::Departure> departure_of(const std::string& text) {
  constexpr std::string_view kName = "Process name: [[", kCode = "Exit code:";
  const std::size_t name = text.find(kName), code = text.find(kCode);
  if (name == std::string::npos || code == std::string::npos) return std::nullopt;
  const std::size_t rank = text.find("],", name);
  if (rank == std::string::npos || rank > code) return std::nullopt;
  return BannerFilter::Departure{std::atoi(text.c_str() + rank + 2),
                                 std::atoi(text.c_str() + code + kCode.size())};
}

bool is_chatter(const std::string& line) {
  return line.rfind("mpirun: Forwarding signal ", 0) == 0 ||
         line.find("sent help message help-") != std::string::npos ||
         line.find("orte_base_help_aggregate") != std::string::npos ||
         (line.find("ORTE_ERROR_LOG") != std::string::npos &&
          line.find("show_help.c") != std::string::npos);
}

}  // namespace

std::string death_line(const std::string& who, int signal) {
  const char* advice = signal == SIGKILL ? ": if nobody killed it, the system ran out of memory "
                                           "(see dmesg): memory.keep=block needs less"
                                         : "";
  return fmt::format("longspan: {}: ended by signal {} ({}){}\n", who, signal, ::strsignal(signal),
                     advice);
}

std::string BannerFilter::judge(const std::string& line) {
  if (!in_frame_ && !is_frame_line(line)) return is_chatter(line) ? "" : line;
  frame_ += line;
  if (!is_frame_line(line)) return "";
  in_frame_ = !in_frame_;
  if (in_frame_) return "";
  const std::string whole = std::exchange(frame_, "");
  if (const std::string death = death_by_signal(whole); !death.empty()) {
    death_seen_ = true;
    return death;
  }
  if (!departure_) departure_ = departure_of(whole);
  return is_echo(whole) ? "" : whole;
}

std::string BannerFilter::take(const std::string& text) {
  std::string shown;
  partial_ += text;
  for (std::size_t end; (end = partial_.find('\n')) != std::string::npos;) {
    const std::string line = partial_.substr(0, end + 1);
    partial_.erase(0, end + 1);
    shown += judge(line);
  }
  return shown;
}

std::string BannerFilter::finish() {
  return std::exchange(frame_, "") + std::exchange(partial_, "");
}

}  // namespace longspan::launcher
