#include "launcher/metrics.hpp"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "parallel/error.hpp"

namespace longspan::launcher {

MetricsWriter::MetricsWriter(const std::string& path, std::int64_t last_step) : path_(path) {
  std::string kept;
  std::ifstream old(path);
  for (std::string line; std::getline(old, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_object() && json.value("step", std::int64_t{0}) <= last_step && json.contains("step") && last_step > 0)
      kept += line + "\n";
  }
  old.close();
  // Written beside the file and renamed over it: a crash here loses nothing.
  const std::string temporary = path + ".tmp";
  {
    std::ofstream fresh(temporary, std::ios::trunc);
    fresh << kept;
    if (!fresh.flush()) fail("cannot write {}: is the disk full?", temporary);
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) fail("cannot replace {}: {}", path, error.message());
  file_.open(path, std::ios::app);
  if (!file_) fail("cannot write {}", path);
}

void MetricsWriter::write(const StepMetrics& m) {
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
                                 {"peak_memory_bytes", m.peak_memory_bytes}};
  if (m.validation_loss) line["validation_loss"] = *m.validation_loss;
  file_ << line.dump() << "\n";
  if (!file_.flush()) fail("cannot write {}: is the disk full?", path_);
}

std::string duration_text(double seconds) {
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  if (s >= 60) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{} s", s);
}

std::string MetricsTable::row(const StepMetrics& m) {
  // The first step warms up caches and kernels: it is not a measure of the others.
  mean_step_seconds_ = rows_ <= 1 ? m.step_seconds : 0.9 * mean_step_seconds_ + 0.1 * m.step_seconds;
  std::string text;
  if (rows_++ == 0)
    text = fmt::format("{:>8} {:>8} {:>9} {:>10} {:>9} {:>9} {:>6} {:>6} {:>6} {:>9} {:>8}\n", "step", "loss", "grad norm", "rate", "s/step",
                       "tokens/s", "mfu %", "comm %", "data %", "memory", "left");
  const double percent = 100.0 / m.step_seconds;
  text += fmt::format("{:>8} {:>8.4f} {:>9.3f} {:>10.3e} {:>9.3f} {:>9.0f} {:>6.1f} {:>6.1f} {:>6.1f} {:>5.0f} MiB {:>8}", m.step, m.loss,
                      m.grad_norm, m.learning_rate, m.step_seconds, m.tokens_per_second, 100 * m.mfu, m.comm_seconds * percent,
                      m.data_seconds * percent, static_cast<double>(m.peak_memory_bytes) / 1048576,
                      duration_text(mean_step_seconds_ * static_cast<double>(steps_ - m.step)));
  if (m.validation_loss) text += fmt::format("  validation {:.4f}", *m.validation_loss);
  return text;
}

}  // namespace longspan::launcher
