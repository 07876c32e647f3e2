// Stands in for the driver's libnvidia-ml.so.1: one GPU at 0000:01:00.0 that draws 500 W, is 87 %
// busy and holds 12 GiB. FAKE_NVML_MISSING names what it does not tell: energy, power, ...
#include <chrono>
#include <cstdlib>
#include <cstring>

namespace {
constexpr int kNotFound = 6, kNotSupported = 3;
int told(const char* what) {
  const char* missing = std::getenv("FAKE_NVML_MISSING");
  return missing != nullptr && std::strstr(missing, what) != nullptr ? kNotSupported : 0;
}
}  // namespace

struct nvmlDevice_st;
extern "C" {
int nvmlInit_v2() {
  return told("init");
}
int nvmlShutdown() {
  return 0;
}
const char* nvmlErrorString(int) {
  return "Not Supported";
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, nvmlDevice_st** device) {
  *device = nullptr;
  return std::strcmp(bus, "0000:01:00.0") == 0 ? 0 : kNotFound;
}
int nvmlDeviceGetUtilizationRates(nvmlDevice_st*, unsigned* rates) {
  rates[0] = 87;
  rates[1] = 30;
  return told("utilisation");
}
int nvmlDeviceGetMemoryInfo(nvmlDevice_st*, unsigned long long* memory) {
  memory[0] = 80ull << 30;
  memory[1] = 68ull << 30;
  memory[2] = 12ull << 30;
  return told("memory");
}
int nvmlDeviceGetPowerUsage(nvmlDevice_st*, unsigned* milliwatts) {
  *milliwatts = 500000;
  return told("power");
}
int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_st*, unsigned long long* millijoules) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  *millijoules = static_cast<unsigned long long>(
      std::chrono::duration_cast<std::chrono::milliseconds>(now).count() * 500);
  return told("energy");
}
}
