/// Use, power and energy of a run's GPUs, for the metrics and the summary at the end. A board that
/// several ranks share counts once.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "launcher/nvml.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Of all GPUs of the run; what not every one of them tells is none.
struct GpuReading {
  std::optional<double> utilisation;         ///< mean, 0 to 1
  std::optional<std::int64_t> memory_bytes;  ///< of the fullest, all processes
  std::optional<double> power_watts;         ///< sum
  std::optional<double> joules_per_token;    ///< over the last second or more
};

class GpuMeter {
 public:
  /// `pci_bus` of this rank's GPU. Collective.
  GpuMeter(const std::string& pci_bus, const Communicator& world);
  /// After a step; `tokens` since the beginning of the run. Collective.
  GpuReading read(std::int64_t tokens);
  /// "GPUs: 93 % busy, 612 W, 1.35 mJ/token (0.17 kWh), 71.2 GiB used at the end"; n/a with the
  /// reason where something is not told. After the last read(). Does not communicate.
  std::string summary() const;

 private:
  /// The sum over the boards, or none if one of them does not tell.
  std::optional<double> sum(std::optional<double> mine) const;

  Nvml nvml_;
  const Communicator& world_;
  bool first_of_board_ = true;
  std::int64_t boards_ = 1;
  std::string problem_;
  std::optional<double> energy_begin_, window_energy_;
  std::int64_t tokens_begin_ = -1, window_tokens_ = 0;
  std::chrono::steady_clock::time_point window_;
  GpuReading last_;
  double utilisation_sum_ = 0, power_sum_ = 0;
  std::int64_t utilisation_count_ = 0, power_count_ = 0;
  std::optional<double> joules_, joules_per_token_;
};

}  // namespace longspan::launcher
