#include "launcher/gpu_meter.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

/// The energy counter is renewed ten times a second or so: shorter windows would show its steps.
constexpr std::chrono::milliseconds kWindow(1000);

}  // namespace

GpuMeter::GpuMeter(const std::string& pci_bus, const Communicator& world)
    : nvml_(pci_bus), world_(world) {
  std::int64_t lowest = world.rank();
  if (world.size() > 1) {
    const Communicator node = world.split_by_node();
    const auto buses = node.all_gather(static_cast<std::int64_t>(hash_name(pci_bus) >> 1));
    const auto first = std::find(buses.begin(), buses.end(), buses[node.rank()]) - buses.begin();
    first_of_board_ = first == node.rank();
    lowest =
        world.all_reduce_min(std::int64_t{nvml_.problem().empty() ? world.size() : world.rank()});
    if (lowest < world.size())
      problem_ = world.broadcast(nvml_.problem(), static_cast<int>(lowest));
  } else {
    problem_ = nvml_.problem();
  }
  boards_ = world.all_reduce_sum(std::int64_t{first_of_board_ ? 1 : 0});
  window_energy_ = energy_begin_ = sum(nvml_.energy_joules());
  window_ = std::chrono::steady_clock::now();
}

std::optional<double> GpuMeter::sum(std::optional<double> mine) const {
  const double total = world_.all_reduce_sum(first_of_board_ ? mine.value_or(0.0) : 0.0);
  const bool told = world_.all_reduce_min(std::int64_t{mine.has_value()}) == 1;
  return told ? std::optional<double>(total) : std::nullopt;
}

GpuReading GpuMeter::read(std::int64_t tokens) {
  last_.utilisation = sum(nvml_.utilisation());
  if (last_.utilisation) {
    *last_.utilisation /= static_cast<double>(boards_);
    utilisation_sum_ += *last_.utilisation;
    ++utilisation_count_;
  }
  last_.power_watts = sum(nvml_.power_watts());
  if (last_.power_watts) {
    power_sum_ += *last_.power_watts;
    ++power_count_;
  }
  const std::int64_t used = world_.all_reduce_max(nvml_.memory_used().value_or(-1));
  last_.memory_bytes = used >= 0 ? std::optional(used) : std::nullopt;
  const std::optional<double> energy = sum(nvml_.energy_joules());
  if (tokens_begin_ < 0) {
    // The first step warms up: what it cost says nothing of the others.
    tokens_begin_ = window_tokens_ = tokens;
    energy_begin_ = window_energy_ = energy;
    window_ = std::chrono::steady_clock::now();
    return last_;
  }
  if (!energy || !energy_begin_) return last_;
  joules_ = *energy - *energy_begin_;
  joules_per_token_ =
      *joules_ / static_cast<double>(std::max<std::int64_t>(1, tokens - tokens_begin_));
  const auto now = std::chrono::steady_clock::now();
  // Rank 0's clock decides: all ranks must see the same reading.
  if (world_.broadcast(std::int64_t{now - window_ >= kWindow}, 0) != 0 && tokens > window_tokens_) {
    last_.joules_per_token =
        (*energy - *window_energy_) / static_cast<double>(tokens - window_tokens_);
    window_ = now;
    window_tokens_ = tokens;
    window_energy_ = energy;
  }
  return last_;
}

std::string GpuMeter::summary() const {
  if (!problem_.empty()) return "GPUs: use, power and energy n/a (" + problem_ + ")";
  const auto number = [](bool told, double value, const char* form) {
    return told ? fmt::format(fmt::runtime(form), value) : std::string("n/a");
  };
  return fmt::format(
      "GPUs: {} busy, {}, {} ({}), {} used at the end",
      number(utilisation_count_ > 0,
             100 * utilisation_sum_ /
                 static_cast<double>(std::max<std::int64_t>(1, utilisation_count_)),
             "{:.0f} %"),
      number(power_count_ > 0,
             power_sum_ / static_cast<double>(std::max<std::int64_t>(1, power_count_)), "{:.0f} W"),
      number(joules_per_token_.has_value(), 1e3 * joules_per_token_.value_or(0), "{:.4g} mJ/token"),
      number(joules_.has_value(), joules_.value_or(0) / 3.6e6, "{:.3g} kWh"),
      number(last_.memory_bytes.has_value(),
             static_cast<double>(last_.memory_bytes.value_or(0)) / 1073741824.0, "{:.1f} GiB"));
}

}  // namespace longspan::launcher
