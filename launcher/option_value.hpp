/// A setting's value to text and back, for every type of field; only options.cpp includes it.
#pragma once

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include "io/config.hpp"
#include "launcher/duration.hpp"
#include "model/config.hpp"
#include "slurm/config.hpp"

namespace longspan::launcher::option_value {

template <class E>
using Choice = std::pair<std::string_view, E>;

/// The texts of an enum's values: one overload for each enum.
inline constexpr std::array<Choice<bool>, 2> kSwitch = {{{"on", true}, {"off", false}}};
inline constexpr std::array<Choice<model::MlpKind>, 2> kMlp = {
    {{"gelu", model::MlpKind::kGelu}, {"swiglu", model::MlpKind::kSwiglu}}};
inline constexpr std::array<Choice<model::NormKind>, 2> kNorm = {
    {{"layernorm", model::NormKind::kLayerNorm}, {"rmsnorm", model::NormKind::kRmsNorm}}};
inline constexpr std::array<Choice<model::PositionKind>, 4> kPosition = {
    {{"rope", model::PositionKind::kRope},
     {"learned", model::PositionKind::kLearned},
     {"sinusoidal", model::PositionKind::kSinusoidal},
     {"none", model::PositionKind::kNone}}};
inline constexpr std::array<Choice<model::Precision>, 2> kPrecision = {
    {{"fp32", model::Precision::kFp32}, {"bf16", model::Precision::kBf16}}};
inline constexpr std::array<Choice<model::MaskKind>, 2> kMask = {
    {{"causal", model::MaskKind::kCausal}, {"full", model::MaskKind::kFull}}};
inline constexpr std::array<Choice<model::AttentionSchemeKind>, 5> kScheme = {
    {{"auto", model::AttentionSchemeKind::kAuto},
     {"ring", model::AttentionSchemeKind::kRing},
     {"allgather", model::AttentionSchemeKind::kAllgather},
     {"ulysses", model::AttentionSchemeKind::kUlysses},
     {"hybrid", model::AttentionSchemeKind::kHybrid}}};
inline constexpr std::array<Choice<model::Keep>, 4> kKeep = {
    {{"all", model::Keep::kAll},
     {"attention", model::Keep::kAttention},
     {"block", model::Keep::kBlock},
     {"auto", model::Keep::kAuto}}};
inline constexpr std::array<Choice<model::Offload>, 3> kOffload = {
    {{"none", model::Offload::kNone},
     {"file", model::Offload::kFile},
     {"host", model::Offload::kHost}}};
inline constexpr std::array<Choice<model::ScheduleKind>, 3> kSchedule = {
    {{"cosine", model::ScheduleKind::kCosine},
     {"linear", model::ScheduleKind::kLinear},
     {"constant", model::ScheduleKind::kConstant}}};
inline constexpr std::array<Choice<model::OptimizerShard>, 4> kOptimizerShard = {
    {{"none", model::OptimizerShard::kNone},
     {"states", model::OptimizerShard::kStates},
     {"gradients", model::OptimizerShard::kGradients},
     {"parameters", model::OptimizerShard::kParameters}}};
inline constexpr std::array<Choice<io::Pack>, 2> kPack = {
    {{"none", io::Pack::kNone}, {"documents", io::Pack::kDocuments}}};
inline constexpr std::array<Choice<slurm::Starter>, 3> kStarter = {
    {{"auto", slurm::Starter::kAuto},
     {"srun", slurm::Starter::kSrun},
     {"mpirun", slurm::Starter::kMpirun}}};
inline constexpr std::array<Choice<slurm::Continue>, 3> kContinue = {
    {{"requeue", slurm::Continue::kRequeue},
     {"chain", slurm::Continue::kChain},
     {"none", slurm::Continue::kNone}}};
inline constexpr std::array<Choice<slurm::Binding>, 2> kBinding = {
    {{"cores", slurm::Binding::kCores}, {"none", slurm::Binding::kNone}}};

inline std::span<const Choice<bool>> choices(bool) {
  return kSwitch;
}
inline std::span<const Choice<model::MlpKind>> choices(model::MlpKind) {
  return kMlp;
}
inline std::span<const Choice<model::NormKind>> choices(model::NormKind) {
  return kNorm;
}
inline std::span<const Choice<model::PositionKind>> choices(model::PositionKind) {
  return kPosition;
}
inline std::span<const Choice<model::Precision>> choices(model::Precision) {
  return kPrecision;
}
inline std::span<const Choice<model::MaskKind>> choices(model::MaskKind) {
  return kMask;
}
inline std::span<const Choice<model::AttentionSchemeKind>> choices(model::AttentionSchemeKind) {
  return kScheme;
}
inline std::span<const Choice<model::Keep>> choices(model::Keep) {
  return kKeep;
}
inline std::span<const Choice<model::Offload>> choices(model::Offload) {
  return kOffload;
}
inline std::span<const Choice<model::ScheduleKind>> choices(model::ScheduleKind) {
  return kSchedule;
}
inline std::span<const Choice<model::OptimizerShard>> choices(model::OptimizerShard) {
  return kOptimizerShard;
}
inline std::span<const Choice<io::Pack>> choices(io::Pack) {
  return kPack;
}
inline std::span<const Choice<slurm::Starter>> choices(slurm::Starter) {
  return kStarter;
}
inline std::span<const Choice<slurm::Continue>> choices(slurm::Continue) {
  return kContinue;
}
inline std::span<const Choice<slurm::Binding>> choices(slurm::Binding) {
  return kBinding;
}

template <class T>
concept Chosen = std::is_enum_v<T> || std::is_same_v<T, bool>;

template <Chosen T>
std::string joined(std::string_view separator) {
  std::string all;
  for (const auto& [text, value] : choices(T{}))
    all += (all.empty() ? "" : std::string(separator)) + std::string(text);
  return all;
}

/// "integer", "number", "text", or the choices: "gelu|swiglu".
template <class T>
std::string kind() {
  if constexpr (Chosen<T>)
    return joined<T>("|");
  else if constexpr (std::is_same_v<T, Duration>)
    return "duration";
  else if constexpr (std::is_integral_v<T>)
    return "integer";
  else if constexpr (std::is_floating_point_v<T>)
    return "number";
  else
    return "text";
}

template <class T>
std::string print(const T& field) {
  if constexpr (Chosen<T>) {
    for (const auto& [text, value] : choices(T{}))
      if (value == field) return std::string(text);
    return "";
  } else if constexpr (std::is_same_v<T, Duration>) {
    return text_of(field);
  } else {
    return fmt::format("{}",
                       field);  // of a float the shortest text that reads back to the same bits
  }
}

/// Sets `field`; returns what would have been valid, empty if `text` was. On failure the field
/// keeps its value.
template <class T>
std::string parse(const std::string& text, T& field) {
  if constexpr (std::is_same_v<T, std::string>) {
    field = text;
    return "";
  } else if constexpr (std::is_same_v<T, Duration>) {
    const auto value = parse_duration(text);
    if (!value) return "a duration such as 90 (seconds), 45m, 2h or 1:30:00";
    field = *value;
    return "";
  } else if constexpr (Chosen<T>) {
    std::string_view word = text;
    if constexpr (std::is_same_v<T, bool>) {
      if (word == "true" || word == "yes" || word == "1") word = "on";
      if (word == "false" || word == "no" || word == "0") word = "off";
    }
    for (const auto& [name, value] : choices(T{}))
      if (word == name) return field = value, "";
    return joined<T>(" or ");
  } else if constexpr (std::is_integral_v<T>) {
    const std::string range = fmt::format("at most {}", std::numeric_limits<T>::max());
    const char* const end = text.data() + text.size();
    T value{};
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc::result_out_of_range) return range;
    const char suffix = end - rest == 1 ? static_cast<char>(*rest | 0x20) : '\0';
    const int shift = suffix == 'k' ? 10 : suffix == 'm' ? 20 : suffix == 'g' ? 30 : 0;
    if (error != std::errc() || (rest != end && shift == 0))
      return std::is_signed_v<T> ? "a whole number such as 12, 8k (8 * 1024) or 1m (1024 * 1024)"
                                 : "a whole number, 0 or more";
    if (__builtin_mul_overflow(value, T{1} << shift, &value)) return range;
    field = value;
    return "";
  } else {
    const char* const end = text.data() + text.size();
    T value{};
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || rest != end || !std::isfinite(value))
      return "a number such as 0.1 or 3e-4";
    field = value;
    return "";
  }
}

}  // namespace longspan::launcher::option_value
