/// What the GPU driver's management library, libnvidia-ml.so.1, says of one GPU. It is opened at
/// run time: where it is not, or does not answer a question (virtual machines often do not), the
/// answer is none, never 0. Read next: gpu_meter.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace longspan::launcher {

class Nvml {
 public:
  /// `pci_bus` as CUDA names the GPU, "0000:1b:00.0".
  explicit Nvml(const std::string& pci_bus);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  /// Why nothing is known, one line; empty if the library knows the GPU.
  const std::string& problem() const { return problem_; }
  std::optional<double> utilisation() const;         ///< time that kernels ran lately, 0 to 1
  std::optional<std::int64_t> memory_used() const;   ///< bytes, of all processes
  std::optional<std::int64_t> memory_total() const;  ///< bytes
  std::optional<double> power_watts() const;
  /// Since the driver was loaded; renewed every 20 to 100 ms. Of the whole board.
  std::optional<double> energy_joules() const;

 private:
  struct Library;
  std::unique_ptr<Library> library_;
  std::string problem_;
};

}  // namespace longspan::launcher
