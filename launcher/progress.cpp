#include "launcher/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "io/file.hpp"

namespace longspan::launcher {
namespace {

std::string quantity(double number, const std::string& unit) {
  if (unit == "B") return io::format_bytes(static_cast<std::int64_t>(number));
  const char* prefix = "";
  for (const char* next : {" k", " M", " G", " T"}) {
    if (number < 10000) break;
    number /= 1000;
    prefix = next;
  }
  return *prefix ? fmt::format("{:.1f}{} {}", number, prefix, unit)
                 : fmt::format("{:.0f} {}", number, unit);
}

}  // namespace

Progress::Progress(std::FILE* out, double seconds_between)
    : out_(out), terminal_(::isatty(::fileno(out)) == 1) {
  seconds_between_ = seconds_between >= 0 ? seconds_between : terminal_ ? 0.1 : 5;
}

Progress::~Progress() {
  if (!terminal_ || !line_shown_) return;
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
}

void Progress::update(const std::string& phase, const std::string& unit, std::int64_t done,
                      std::int64_t total) {
  const Clock::time_point now = Clock::now();
  if (phase != phase_) {
    phase_ = phase;
    phase_begin_ = last_ = now;
  }
  if (std::chrono::duration<double>(now - last_).count() < seconds_between_) return;
  last_ = now;
  const std::string line = progress_line(phase, unit, done, total,
                                         std::chrono::duration<double>(now - phase_begin_).count());
  fmt::print(out_, fmt::runtime(terminal_ ? "\r{}\033[K" : "{}\n"), line);
  std::fflush(out_);
  line_shown_ = true;
}

std::string progress_line(const std::string& phase, const std::string& unit, std::int64_t done,
                          std::int64_t total, double seconds) {
  const double share =
      total > 0 ? std::min(1.0, static_cast<double>(done) / static_cast<double>(total)) : 1;
  std::string line = fmt::format("{}  {:.0f} %  {} of {}", phase, std::floor(100 * share),
                                 quantity(static_cast<double>(done), unit),
                                 quantity(static_cast<double>(total), unit));
  if (seconds > 0 && done > 0)
    line += fmt::format("  {}/s  {} left", quantity(static_cast<double>(done) / seconds, unit),
                        duration_text(seconds / share * (1 - share)));
  return line;
}

std::string duration_text(double seconds) {
  const auto whole = std::llround(seconds);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

std::string grouped(std::int64_t number) {
  const std::string digits = fmt::format("{}", number < 0 ? -number : number);
  std::string text(number < 0 ? 1 : 0, '-');
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string counted(std::int64_t number, const std::string& singular) {
  return fmt::format("{} {}{}", grouped(number), singular, number == 1 ? "" : "s");
}

}  // namespace longspan::launcher
