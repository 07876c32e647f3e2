/// Statistics of tensor elements as they stream by.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "io/checkpoint_reader.hpp"
#include "parallel/array.hpp"

namespace longspan::io {

/// One element of any type as a number; exact but for the largest 64-bit integers.
double element_value(DType dtype, const void* element);
/// The same for `values.size()` consecutive elements.
void element_values(DType dtype, const void* elements, std::span<double> values);

/// Accumulates in double, eight elements at a time: the compiler keeps them in vector registers.
class RunningStatistics {
 public:
  /// `bytes`: whole elements.
  void add(DType dtype, const void* elements, std::int64_t bytes);
  TensorStatistics result() const;

 private:
  static constexpr std::size_t kLanes = 8;
  using Lanes = std::array<double, kLanes>;
  template <class T>
  void add_as(const char* elements, std::int64_t bytes);
  void add_one(double value);
  void add_lanes(const Lanes& values);

  bool any_ = false;  ///< a finite value was seen
  double shift_ = 0;  ///< it: deviations from it keep the variance of weights near 1 exact
  std::int64_t count_ = 0;
  Lanes nan_ = {}, inf_ = {}, sum_ = {}, sum_of_squares_ = {}, norm_ = {}, minimum_ = {},
        maximum_ = {};
};

}  // namespace longspan::io
