// Matrix products through cuBLASLt. In the emulator tests/support/cuda_emulator/gemm.cpp stands
// here. Read next: gemm_epilogues.cpp.
#if !defined(LONGSPAN_CUDA_EMULATED)
#include "model/kernels/cuda/gemm_state.hpp"
#include "model/kernels/cuda/range.hpp"

namespace longspan::model {
namespace {

/// Elements of an operand that is rounded here: 256 MiB. Larger products are cut.
constexpr std::int64_t kScratchElements = std::int64_t{1} << 27;

/// An operand as bfloat16 numbers: the caller's, or rounded here with rows of whole 16 bytes.
struct Rounded {
  Buffer<std::uint16_t> scratch;
  const std::uint16_t* data;
  std::int64_t stride;

  Rounded(const std::uint16_t* bits, const float* numbers, std::int64_t rows, std::int64_t cols,
          std::int64_t row, Device& device, Stream& stream)
      : data(bits), stride(row) {
    if (bits != nullptr) return;
    stride = (cols + 7) / 8 * 8;
    scratch = Buffer<std::uint16_t>(device, rows, stride);
    cuda::to_bf16(rows, cols, numbers, row, scratch.data(), stride, stream);
    data = scratch.data();
  }
};

void advance(const std::uint16_t*& bits, const float*& numbers, std::int64_t elements) {
  if (bits != nullptr)
    bits += elements;
  else
    numbers += elements;
}

/// Halves the product until what has to be rounded fits, then runs the parts one after the other.
void product(const GemmArgs& args, CudaGemmState& state, Stream& stream) {
  const bool round_a = args.bf16_operands && args.a_bf16 == nullptr,
             round_b = args.bf16_operands && args.b_bf16 == nullptr;
  const bool large_a = round_a && args.m * args.k > kScratchElements,
             large_b = round_b && args.k * args.n > kScratchElements;
  if (large_a || large_b) {
    const auto half = [](std::int64_t length) { return (length / 2 + 63) / 64 * 64; };
    GemmArgs first = args, second = args;
    if (large_a && args.m >= args.k && args.m >= 128) {
      first.m = half(args.m), second.m -= first.m;
      advance(second.a_bf16, second.a, args.trans_a ? first.m : first.m * args.lda);
      second.c += first.m * args.ldc;
    } else if (large_b && args.n >= args.k && args.n >= 128) {
      first.n = half(args.n), second.n -= first.n;
      advance(second.b_bf16, second.b, args.trans_b ? first.n * args.ldb : first.n);
      second.c += first.n;
      if (args.bias != nullptr) second.bias += first.n;
    } else {
      first.k = half(args.k), second.k -= first.k;
      advance(second.a_bf16, second.a, args.trans_a ? first.k * args.lda : first.k);
      advance(second.b_bf16, second.b, args.trans_b ? first.k : first.k * args.ldb);
      second.accumulate = true;
      second.bias = nullptr;
    }
    product(first, state, stream);
    return product(second, state, stream);
  }
  GemmShape shape{args.m,
                  args.n,
                  args.k,
                  args.lda,
                  args.ldb,
                  args.ldc,
                  args.trans_a,
                  args.trans_b,
                  args.accumulate,
                  args.bias != nullptr,
                  args.bf16_operands};
  Operands operands{args.a, args.b, args.c, args.bias};
  std::optional<Rounded> a, b;
  if (args.bf16_operands) {
    a.emplace(args.a_bf16, args.a, args.trans_a ? args.k : args.m, args.trans_a ? args.m : args.k,
              args.lda, state.device, stream);
    b.emplace(args.b_bf16, args.b, args.trans_b ? args.n : args.k, args.trans_b ? args.k : args.n,
              args.ldb, state.device, stream);
    operands.a = a->data, shape.lda = a->stride;
    operands.b = b->data, shape.ldb = b->stride;
  }
  // A fused bias is read like the other operands.
  const bool apart = args.bias != nullptr && alignment(args.bias) < 16;
  if (apart) shape.bias = false;
  shape.alignment = std::min({alignment(operands.a), alignment(operands.b), alignment(operands.c)});
  state.run(shape, operands, stream);
  if (apart) cuda::start_from_bias(args.m, args.n, args.bias, true, args.c, args.ldc, stream);
}

}  // namespace

void CudaKernels::gemm(const GemmArgs& args, Stream& stream) {
  const Range range("matrix product");
  if (args.m == 0 || args.n == 0) return;
  if (args.k == 0)
    return cuda::start_from_bias(args.m, args.n, args.bias, args.accumulate, args.c, args.ldc,
                                 stream);
  if (gemm_ == nullptr) gemm_ = std::make_shared<CudaGemmState>(device_, deterministic_);
  product(args, *gemm_, stream);
}

}  // namespace longspan::model
#endif
