/// Activations that products read: in fp32, or with model.precision=bf16 rounded to bfloat16, which
/// is all that a product sees of them, in half of the memory.
#pragma once

#include <cstdint>

#include "model/kernels/kernels.hpp"
#include "parallel/array.hpp"
#include "parallel/device.hpp"

namespace longspan::model {

/// A matrix as a product reads it: fp32 numbers, or the bits of bfloat16 numbers.
struct Operand {
  View<const float> fp32;
  View<const std::uint16_t> bf16;  ///< if not empty, fp32 is

  Operand(View<const float> x) : fp32(x) {}
  Operand(View<float> x) : fp32(x) {}
  Operand(const Buffer<float>& x) : fp32(x) {}
  Operand(View<const std::uint16_t> bits) : bf16(bits) {}

  std::int64_t rows() const { return bf16.empty() ? fp32.rows() : bf16.rows(); }
  std::int64_t cols() const { return bf16.empty() ? fp32.cols() : bf16.cols(); }
  Operand slice_rows(std::int64_t first, std::int64_t count) const {
    return bf16.empty() ? Operand(fp32.slice_rows(first, count))
                        : Operand(bf16.slice_rows(first, count));
  }
};

/// Owns such a matrix between forward and backward.
class Activation {
 public:
  Activation() = default;
  /// [rows, cols], not initialised.
  Activation(std::int64_t rows, std::int64_t cols, bool bf16, Backend backend);
  /// Takes x over, or (bf16) rounds it and gives its memory back. Empty if x is.
  Activation(Buffer<float> x, bool bf16, Backend backend);

  bool empty() const { return fp32_.empty() && bf16_.empty(); }
  void clear() { fp32_.clear(), bf16_.clear(); }
  Operand operand() const;
  /// The fp32 numbers of rows [first, first + count) where they lie; empty if they are bfloat16.
  View<float> fp32_rows(std::int64_t first, std::int64_t count) const;
  /// The same of bfloat16 numbers; empty if they are fp32.
  View<std::uint16_t> bf16_rows(std::int64_t first, std::int64_t count) const;
  /// bfloat16 only. Rounds x [count, cols] into the rows from `first` on, and back exactly.
  void store(std::int64_t first, View<const float> x, Backend backend) const;
  void load(std::int64_t first, View<float> x, Backend backend) const;
  /// All as fp32, exactly; empty afterwards.
  Buffer<float> take(Backend backend);

 private:
  Buffer<float> fp32_;
  Buffer<std::uint16_t> bf16_;
};

}  // namespace longspan::model
