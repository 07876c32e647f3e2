/// Progress of long work, with the time that is left: on a terminal a line that is rewritten, in a
/// log file a plain line every few seconds. Short work shows nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace longspan::launcher {

class Progress {
 public:
  /// Writes to `out`, so that stdout stays clean for --json. `seconds_between`: of two lines;
  /// negative = 0.1 on a terminal, 5 elsewhere.
  explicit Progress(std::FILE* out = stderr, double seconds_between = -1);
  ~Progress();  ///< takes the line off the terminal
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `phase` names the work ("writing"), `unit` what is counted: "B" or a plural ("tokens"). A new
  /// phase starts a new clock. Cheap: call it for every block.
  void update(const std::string& phase, const std::string& unit, std::int64_t done,
              std::int64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  std::FILE* out_;
  bool terminal_;
  double seconds_between_;
  bool line_shown_ = false;
  std::string phase_;
  Clock::time_point phase_begin_, last_;
};

/// "writing  45 %  1.2 GB of 2.7 GB  512.0 MB/s  3 s left"
std::string progress_line(const std::string& phase, const std::string& unit, std::int64_t done,
                          std::int64_t total, double seconds);
/// "42 s", "3 min 05 s", "2 h 07 min"
std::string duration_text(double seconds);
/// "1,234,567"
std::string grouped(std::int64_t number);
/// "1 file", "2,000 files"
std::string counted(std::int64_t number, const std::string& singular);

}  // namespace longspan::launcher
