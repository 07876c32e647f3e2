#include "launcher/metrics.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

/// All of `text`, or Error; what is in the file is taken off its front.
void write_all(int file, std::string& text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("cannot write {}: {}", path, std::strerror(errno));
    text.erase(0, static_cast<std::size_t>(written));
  }
}

/// The complete lines of steps up to `last_step`; the validation losses in them go to `losses`.
std::string lines_until(const std::string& text, std::int64_t last_step,
                        std::vector<double>& losses) {
  std::string kept;
  for (std::size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    const std::string_view line(text.data() + begin, end - begin);
    const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer())
      continue;
    if (object["step"].get<std::int64_t>() > last_step) continue;
    kept.append(line).push_back('\n');
    if (const auto loss = object.find("validation_loss"); loss != object.end() && loss->is_number())
      losses.push_back(loss->get<double>());
  }
  return kept;
}

std::string bytes_text(std::int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.2f} GiB", mib / 1024);
}

std::string time_left_text(double seconds) {
  if (!(seconds < 1e9)) return "?";
  const auto s = std::llround(seconds);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace

std::string to_json(const StepMetrics& m) {
  nlohmann::ordered_json line = {{"step", m.step},
                                 {"tokens", m.tokens},
                                 {"loss", m.loss},
                                 {"grad_norm", m.grad_norm},
                                 {"learning_rate", m.learning_rate},
                                 {"step_seconds", m.step_seconds},
                                 {"tokens_per_second", m.tokens_per_second},
                                 {"mfu", m.mfu},
                                 {"comm_seconds", m.comm_seconds},
                                 {"data_seconds", m.data_seconds},
                                 {"peak_memory_bytes", m.peak_memory_bytes},
                                 {"hfu", m.hfu}};
  if (m.validation_loss) line["validation_loss"] = *m.validation_loss;
  if (m.gpu_utilisation) line["gpu_utilisation"] = *m.gpu_utilisation;
  if (m.gpu_memory_bytes) line["gpu_memory_bytes"] = *m.gpu_memory_bytes;
  if (m.gpu_power_watts) line["gpu_power_watts"] = *m.gpu_power_watts;
  if (m.joules_per_token) line["joules_per_token"] = *m.joules_per_token;
  return line.dump();
}

void MetricsWriter::close_file(int file) {
  ::close(file);
}

MetricsWriter::MetricsWriter(const std::string& path, std::int64_t last_step) : path_(path) {
  std::string text;
  if (std::error_code none; !std::filesystem::is_regular_file(path, none)) {
    // Nothing to keep: a new file, or something like /dev/null.
  } else if (std::ifstream old(path, std::ios::binary); old)
    text.assign(std::istreambuf_iterator<char>(old), {});
  if (std::string kept = lines_until(text, last_step, validation_losses_); kept != text) {
    const std::string temporary = path + ".new";
    Handle<int, -1, close_file> file(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (!file) fail("cannot write {}: {}", temporary, std::strerror(errno));
    write_all(file.get(), kept, temporary);
    if (::fsync(file.get()) != 0 || std::rename(temporary.c_str(), path.c_str()) != 0)
      fail("cannot replace {}: {}", path, std::strerror(errno));
  }
  file_ = Handle<int, -1, close_file>(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file_) fail("cannot write {}: {}", path, std::strerror(errno));
}

void MetricsWriter::write(const StepMetrics& metrics) {
  waiting_ += to_json(metrics) + "\n";
  flush();
}

void MetricsWriter::flush() {
  write_all(file_.get(), waiting_, path_);
}

std::string MetricsTable::row(const StepMetrics& m) {
  // The first step warms everything up: later ones say more about what is to come.
  if (rows_ < 2)
    mean_step_seconds_ = m.step_seconds;
  else
    mean_step_seconds_ += 0.1 * (m.step_seconds - mean_step_seconds_);
  const int width = std::max(4, static_cast<int>(std::to_string(steps_).size()));
  std::string text;
  if (rows_++ == 0)
    text = fmt::format("{:>{}}  {:>9}  {:>9}  {:>9}  {:>10}  {:>5}  {:>9}  {:>9}\n", "step", width,
                       "loss", "grad norm", "rate", "tokens/s", "MFU %", "memory", "time left");
  text +=
      fmt::format("{:>{}}  {:>9.4f}  {:>9.3g}  {:>9.3g}  {:>10.0f}  {:>5.1f}  {:>9}  {:>9}", m.step,
                  width, m.loss, m.grad_norm, m.learning_rate, m.tokens_per_second, 100 * m.mfu,
                  bytes_text(m.peak_memory_bytes),
                  time_left_text(mean_step_seconds_ *
                                 static_cast<double>(std::max<std::int64_t>(0, steps_ - m.step))));
  if (m.validation_loss) text += fmt::format("  validation {:.4f}", *m.validation_loss);
  return text;
}

}  // namespace longspan::launcher
