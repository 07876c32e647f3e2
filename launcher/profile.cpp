#include "launcher/profile.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "launcher/table.hpp"

namespace longspan::launcher {
namespace {

constexpr double kSmall = 1e-3;  ///< of a step

}  // namespace

double other_seconds(const StepProfile& profile) {
  double known = profile.communication_seconds + profile.data_seconds;
  for (const auto& operation : profile.operations) known += operation.seconds;
  return std::max(0.0, profile.seconds - known);
}

std::string profile_text(const StepProfile& p) {
  using Align = Table::Align;
  const double steps = static_cast<double>(std::max<std::int64_t>(1, p.steps));
  Table table({{"operation", Align::kLeft},
               {"calls"},
               {"ms"},
               {"of step"},
               {"GFLOP/s"},
               {"of peak"},
               {"GB/s"}});
  const auto share = [&](double seconds) {
    return fmt::format("{:.1f} %", p.seconds > 0 ? 100 * seconds / p.seconds : 0.0);
  };
  const auto add = [&](const std::string& name, double calls, double seconds, double flops,
                       double bytes) {
    const double rate = seconds > 0 ? 1 / seconds : 0;
    table.add({name, calls > 0 ? fmt::format("{:.4g}", calls / steps) : "",
               fmt::format("{:.2f}", 1e3 * seconds / steps), share(seconds),
               flops > 0 ? fmt::format("{:.1f}", flops * rate * 1e-9) : "",
               flops > 0 && p.peak_flops > 0
                   ? fmt::format("{:.0f} %", 100 * flops * rate / p.peak_flops)
                   : "",
               bytes > 0 ? fmt::format("{:.1f}", bytes * rate * 1e-9) : ""});
  };
  model::OperationTotals rest;
  int small = 0;
  for (const auto& o : p.operations) {
    if (o.seconds >= kSmall * p.seconds) {
      add(o.name, static_cast<double>(o.calls), o.seconds, o.flops, o.bytes);
      continue;
    }
    ++small;
    rest.calls += o.calls, rest.seconds += o.seconds, rest.flops += o.flops, rest.bytes += o.bytes;
  }
  if (small > 0)
    add(fmt::format("{} small operations", small), static_cast<double>(rest.calls), rest.seconds,
        rest.flops, rest.bytes);
  if (p.communication_seconds > 0)
    add("communication nothing hid", 0, p.communication_seconds, 0, 0);
  if (p.data_seconds > kSmall * p.seconds) add("waiting for data", 0, p.data_seconds, 0, 0);
  add("everything else", 0, other_seconds(p), 0, 0);
  return fmt::format(
             "where the time of a step goes (rank 0, mean of {} steps of {:.2f} ms; peak {:.1f} "
             "GFLOP/s a rank):\n",
             p.steps, 1e3 * p.seconds / steps, p.peak_flops * 1e-9) +
         table.text();
}

std::string profile_json(const StepProfile& p) {
  auto operations = nlohmann::ordered_json::array();
  for (const auto& o : p.operations)
    operations.push_back({{"name", o.name},
                          {"calls", o.calls},
                          {"seconds", o.seconds},
                          {"flops", o.flops},
                          {"bytes", o.bytes}});
  const nlohmann::ordered_json report = {{"steps", p.steps},
                                         {"seconds", p.seconds},
                                         {"comm_seconds", p.communication_seconds},
                                         {"data_seconds", p.data_seconds},
                                         {"other_seconds", other_seconds(p)},
                                         {"peak_flops", p.peak_flops},
                                         {"operations", operations}};
  return report.dump(2);
}

void StepProfiler::begin_step() {
  if (kernels_ != nullptr) kernels_->clear();
}

void StepProfiler::end_step(double seconds, double communication_seconds, double data_seconds) {
  if (kernels_ == nullptr || !std::exchange(warm_, true)) return;
  sums_.steps += 1;
  sums_.seconds += seconds;
  sums_.communication_seconds += communication_seconds;
  sums_.data_seconds += data_seconds;
  for (auto& operation : kernels_->totals()) {
    const auto known = std::find_if(sums_.operations.begin(), sums_.operations.end(),
                                    [&](const auto& o) { return o.name == operation.name; });
    if (known == sums_.operations.end()) {
      sums_.operations.push_back(std::move(operation));
      continue;
    }
    known->calls += operation.calls;
    known->seconds += operation.seconds;
    known->flops += operation.flops;
    known->bytes += operation.bytes;
  }
}

StepProfile StepProfiler::result(double peak_flops) const {
  StepProfile profile = sums_;
  profile.peak_flops = peak_flops;
  std::stable_sort(profile.operations.begin(), profile.operations.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return profile;
}

}  // namespace longspan::launcher
