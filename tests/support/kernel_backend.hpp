/// Runs the tests of a kernel once for every backend that is here: the CPU with each of its
/// instruction sets, CUDA's kernels in the emulator, and with LONGSPAN_TEST_DEVICE=cuda in the
/// environment the real plug-in alone.
///   class NormKernel : public testing_support::EveryBackend {};
///   TEST_P(NormKernel, ...) { kernels().norm_forward(args); }    EVERY_BACKEND(NormKernel);
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/kernels/kernels.hpp"

namespace longspan::testing_support {

/// One call of a kernel with arrays of the host: in() and inout() give the device's copy of an
/// array (of the host's pointer itself where the device can read it), finish() brings back what
/// inout() announced. The same host pointer gives the same copy, so operations in place stay in
/// place. On a device every array lies between zones of NaN bytes, and finish() fails the test if
/// one was written to. Null stays null.
class HostCall {
 public:
  /// `shift`: arrays begin so many elements behind a multiple of 256 bytes.
  HostCall(const model::Backend& backend, std::int64_t shift) : backend_(backend), shift_(shift) {}
  template <class T>
  const T* in(const T* host, std::int64_t count) {
    return static_cast<const T*>(place(const_cast<T*>(host), count, sizeof(T), false));
  }
  template <class T>
  T* inout(T* host, std::int64_t count) {
    return static_cast<T*>(place(host, count, sizeof(T), true));
  }
  void finish();

 private:
  struct Array {
    void* host;
    std::size_t bytes, offset;
    bool written;
    Buffer<std::byte> device;
  };
  void* place(void* host, std::int64_t count, std::size_t size, bool written);

  model::Backend backend_;
  std::int64_t shift_;
  std::vector<Array> arrays_;
};

/// A backend's operations on memory of the host.
class HostKernels {
 public:
  HostKernels(const model::Backend& backend, std::int64_t shift)
      : backend_(backend), shift_(shift) {}

  void gemm(const model::GemmArgs& args);
  void gemm_to_bf16(const model::GemmToBf16Args& args);
  void gemm_gelu_forward(const model::GemmGeluArgs& args);
  void gemm_gelu_backward(const model::GemmGeluBackwardArgs& args);
  void norm_forward(const model::NormForwardArgs& args);
  void residual_norm_forward(const model::ResidualNormArgs& args);
  void norm_backward(const model::NormBackwardArgs& args);
  void gelu_forward(const model::GeluForwardArgs& args);
  void gelu_bf16_forward(const model::GeluBf16ForwardArgs& args);
  void gelu_backward(const model::GeluBackwardArgs& args);
  void swiglu_forward(const model::SwigluForwardArgs& args);
  void swiglu_backward(const model::SwigluBackwardArgs& args);
  void swiglu_bf16_forward(const model::SwigluBf16ForwardArgs& args);
  void swiglu_bf16_backward(const model::SwigluBf16BackwardArgs& args);
  void residual_forward(const model::ResidualForwardArgs& args);
  void residual_backward(const model::ResidualBackwardArgs& args);
  void rotary(const model::RotaryArgs& args);
  void embedding_forward(const model::EmbeddingForwardArgs& args);
  void embedding_backward(const model::EmbeddingBackwardArgs& args);
  void cross_entropy(const model::CrossEntropyArgs& args);
  void adamw(const model::AdamwArgs& args);
  void add(std::int64_t count, const float* x, float* y);
  void add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row, float* y,
                std::int64_t y_row);
  void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y);
  double sum_of_squares(std::int64_t count, const float* x);
  void round_to_bf16(std::int64_t count, float* x);
  void to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
               std::uint16_t* y);
  void from_bf16(std::int64_t count, const std::uint16_t* x, float* y);

  const model::Backend& backend() const { return backend_; }
  /// For operations that are not above: HostCall call = kernels().call(); ...; call.finish().
  HostCall call() const { return HostCall(backend_, shift_); }

 private:
  model::Backend backend_;
  std::int64_t shift_;
};

/// "AVX2", ... (the CPU's instruction sets), "emulated", "emulated_shifted", "cuda",
/// "cuda_shifted": shifted arrays are not aligned to more than their elements. every_set = false:
/// the CPU once.
std::vector<std::string> kernel_backends(bool every_set = true);

/// CUDA's operations alone: the emulated plug-in's or, with LONGSPAN_TEST_DEVICE=cuda, the real
/// one's. None where there is no GPU for that; `why` says so.
std::optional<model::Backend> cuda_backend(std::string& why);

class EveryBackend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override;  ///< skips where there is no GPU for "cuda"
  HostKernels& kernels() { return *kernels_; }
  /// The emulated matrix product is the CPU's: a few shapes show that it is reached.
  static bool emulated() { return GetParam().starts_with("emulated"); }
  bool on_host() const { return kernels_->backend().device.host_accessible(); }

 private:
  std::unique_ptr<HostKernels> kernels_;
};

}  // namespace longspan::testing_support

#define EVERY_BACKEND(fixture)                                                              \
  INSTANTIATE_TEST_SUITE_P(On, fixture,                                                     \
                           testing::ValuesIn(longspan::testing_support::kernel_backends()), \
                           [](const auto& info) { return info.param; })
