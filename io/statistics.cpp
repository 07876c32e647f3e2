#include "io/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace longspan::io {
namespace {

struct Bf16 {
  std::uint16_t bits;
  explicit operator double() const {
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    float value = 0;
    std::memcpy(&value, &wide, sizeof value);
    return static_cast<double>(value);
  }
};

/// Calls `use` with a value of the C++ type of `dtype`.
template <class Use>
auto with_type(DType dtype, Use&& use) {
  switch (dtype) {
    case DType::kF32:
      return use(float{});
    case DType::kF64:
      return use(double{});
    case DType::kU8:
      return use(std::uint8_t{});
    case DType::kU16:
      return use(std::uint16_t{});
    case DType::kU32:
      return use(std::uint32_t{});
    case DType::kI32:
      return use(std::int32_t{});
    case DType::kI64:
      return use(std::int64_t{});
    case DType::kU64:
      return use(std::uint64_t{});
    case DType::kBF16:
      break;
  }
  return use(Bf16{0});
}

template <class T>
double load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return static_cast<double>(value);
}

}  // namespace

double element_value(DType dtype, const void* element) {
  return with_type(dtype, [&]<class T>(T) { return load<T>(static_cast<const char*>(element)); });
}

void element_values(DType dtype, const void* elements, std::span<double> values) {
  with_type(dtype, [&]<class T>(T) {
    const auto* at = static_cast<const char*>(elements);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = load<T>(at + i * sizeof(T));
  });
}

void RunningStatistics::add(DType dtype, const void* elements, std::int64_t bytes) {
  with_type(dtype, [&]<class T>(T) { add_as<T>(static_cast<const char*>(elements), bytes); });
}

template <class T>
void RunningStatistics::add_as(const char* elements, std::int64_t bytes) {
  constexpr auto kStep = static_cast<std::int64_t>(kLanes * sizeof(T));
  const char* const end = elements + bytes;
  while (!any_ && elements < end) add_one(load<T>(elements)), elements += sizeof(T);
  for (; end - elements >= kStep; elements += kStep) {
    Lanes values;
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      values[lane] = load<T>(elements + lane * sizeof(T));
    add_lanes(values);
  }
  for (; elements < end; elements += sizeof(T)) add_one(load<T>(elements));
}

void RunningStatistics::add_one(double value) {
  if (!any_ && std::isfinite(value)) {
    any_ = true;
    shift_ = value;
    minimum_.fill(value);
    maximum_.fill(value);
  }
  if (any_) {
    Lanes padded;
    padded.fill(shift_);  // adds nothing but to the norm
    padded[0] = value;
    const Lanes norm = norm_;
    add_lanes(padded);
    std::copy(norm.begin() + 1, norm.end(), norm_.begin() + 1);
    count_ -= static_cast<std::int64_t>(kLanes) - 1;
    return;
  }
  ++count_;
  (std::isnan(value) ? nan_ : inf_)[0] += 1;
}

void RunningStatistics::add_lanes(const Lanes& values) {
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const double value = values[lane];
    const bool finite = value - value == 0.0;
    const bool nan = value != value;
    const double x = finite ? value : shift_;
    const double deviation = x - shift_;
    nan_[lane] += nan ? 1.0 : 0.0;
    inf_[lane] += finite || nan ? 0.0 : 1.0;
    sum_[lane] += deviation;
    sum_of_squares_[lane] += deviation * deviation;
    norm_[lane] += finite ? x * x : 0.0;
    minimum_[lane] = x < minimum_[lane] ? x : minimum_[lane];
    maximum_[lane] = x > maximum_[lane] ? x : maximum_[lane];
  }
  count_ += static_cast<std::int64_t>(kLanes);
}

TensorStatistics RunningStatistics::result() const {
  const auto total = [](const Lanes& lanes) {
    return std::accumulate(lanes.begin(), lanes.end(), 0.0);
  };
  TensorStatistics s;
  s.count = count_;
  s.nan = static_cast<std::int64_t>(total(nan_));
  s.inf = static_cast<std::int64_t>(total(inf_));
  const std::int64_t finite = s.count - s.nan - s.inf;
  if (finite == 0) return s;
  const double n = static_cast<double>(finite);
  const double sum = total(sum_);
  s.mean = shift_ + sum / n;
  s.standard_deviation = std::sqrt(std::max(0.0, (total(sum_of_squares_) - sum * sum / n) / n));
  s.norm = std::sqrt(total(norm_));
  s.minimum = *std::min_element(minimum_.begin(), minimum_.end());
  s.maximum = *std::max_element(maximum_.begin(), maximum_.end());
  return s;
}

}  // namespace longspan::io
