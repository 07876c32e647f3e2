#include "launcher/nvml.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

namespace longspan::launcher {
namespace {

// From NVIDIA's nvml.h, which toolkits need not have: its functions' names end in their version.
using Device = struct nvmlDevice_st*;
using Result = int;
struct Utilisation {
  unsigned gpu, memory;  // percent
};
struct Memory {
  unsigned long long total, free, used;
};

}  // namespace

struct Nvml::Library {
  void* handle = nullptr;
  Device device = nullptr;
  Result (*shutdown)() = nullptr;
  Result (*utilisation)(Device, Utilisation*) = nullptr;
  Result (*memory)(Device, Memory*) = nullptr;
  Result (*power)(Device, unsigned*) = nullptr;
  Result (*energy)(Device, unsigned long long*) = nullptr;

  template <class Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(::dlsym(handle, name));
  }
  ~Library() {
    if (shutdown != nullptr) shutdown();
    if (handle != nullptr) ::dlclose(handle);
  }
};

Nvml::Nvml(const std::string& pci_bus) : library_(std::make_unique<Library>()) {
  Library& l = *library_;
  l.handle = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (l.handle == nullptr) {
    problem_ = "libnvidia-ml.so.1 of the GPU driver is not here";
    return;
  }
  Result (*initialize)() = nullptr;
  Result (*by_bus)(const char*, Device*) = nullptr;
  const char* (*text)(Result) = nullptr;
  l.find(initialize, "nvmlInit_v2");
  l.find(by_bus, "nvmlDeviceGetHandleByPciBusId_v2");
  l.find(text, "nvmlErrorString");
  if (initialize == nullptr || by_bus == nullptr) {
    problem_ = "libnvidia-ml.so.1 has other functions than expected";
    return;
  }
  const auto said = [&](const char* call, Result result) {
    return fmt::format("{}: {} ({})", call, text != nullptr ? text(result) : "error", result);
  };
  if (const Result result = initialize(); result != 0) {
    problem_ = said("nvmlInit", result);
    return;
  }
  l.find(l.shutdown, "nvmlShutdown");
  if (const Result result = by_bus(pci_bus.c_str(), &l.device); result != 0) {
    problem_ = said("nvmlDeviceGetHandleByPciBusId", result);
    return;
  }
  l.find(l.utilisation, "nvmlDeviceGetUtilizationRates");
  l.find(l.memory, "nvmlDeviceGetMemoryInfo");
  l.find(l.power, "nvmlDeviceGetPowerUsage");
  l.find(l.energy, "nvmlDeviceGetTotalEnergyConsumption");
}

Nvml::~Nvml() = default;

std::optional<double> Nvml::utilisation() const {
  Utilisation value{};
  if (library_->utilisation == nullptr || library_->utilisation(library_->device, &value) != 0)
    return std::nullopt;
  return value.gpu / 100.0;
}

std::optional<std::int64_t> Nvml::memory_used() const {
  Memory value{};
  if (library_->memory == nullptr || library_->memory(library_->device, &value) != 0)
    return std::nullopt;
  return static_cast<std::int64_t>(value.used);
}

std::optional<std::int64_t> Nvml::memory_total() const {
  Memory value{};
  if (library_->memory == nullptr || library_->memory(library_->device, &value) != 0)
    return std::nullopt;
  return static_cast<std::int64_t>(value.total);
}

std::optional<double> Nvml::power_watts() const {
  unsigned milliwatts = 0;
  if (library_->power == nullptr || library_->power(library_->device, &milliwatts) != 0)
    return std::nullopt;
  return milliwatts * 1e-3;
}

std::optional<double> Nvml::energy_joules() const {
  unsigned long long millijoules = 0;
  if (library_->energy == nullptr || library_->energy(library_->device, &millijoules) != 0)
    return std::nullopt;
  return static_cast<double>(millijoules) * 1e-3;
}

}  // namespace longspan::launcher
