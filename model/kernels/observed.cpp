#include "model/kernels/observed.hpp"

#include <fmt/format.h>

#include <memory>

#include "parallel/host_copy.hpp"

namespace longspan::model {
namespace {

constexpr double kFp32 = 4, kBf16 = 2;  ///< bytes of an element

double product(std::int64_t a, std::int64_t b) {
  return static_cast<double>(a) * static_cast<double>(b);
}

double gemm_bytes(const GemmArgs& a) {
  return product(a.m, a.k) * (a.a_bf16 ? kBf16 : kFp32) +
         product(a.k, a.n) * (a.b_bf16 ? kBf16 : kFp32) +
         product(a.m, a.n) * kFp32 * (a.accumulate ? 2 : 1);
}

OperationCall gemm_call(const GemmArgs& a, const char* behind) {
  return {fmt::format("matrix product {} x {} x {}{}", a.m, a.n, a.k, behind),
          2.0 * product(a.m, a.n) * static_cast<double>(a.k), gemm_bytes(a)};
}

/// Channels of all query heads, and of all key heads, over the batch.
struct AttentionSize {
  double queries, keys, flops_forward;
};
AttentionSize size_of(const AttentionShape& s, Device& device, Stream& stream) {
  // The pairs are counted on the host.
  const auto on_host = [&](const std::int32_t*& numbers, std::int64_t count) {
    auto copy = std::make_unique<OnHost<std::int32_t>>(
        device, stream, View<const std::int32_t>(numbers, numbers == nullptr ? 0 : count));
    numbers = copy->view().data();
    return copy;
  };
  AttentionShape shape = s;
  const auto query_positions = on_host(shape.query_positions, s.queries),
             key_positions = on_host(shape.key_positions, s.keys),
             query_documents = on_host(shape.query_documents, s.queries),
             key_documents = on_host(shape.key_documents, s.keys);
  const double channels = product(s.batch, s.head_size);
  return {channels * product(s.queries, s.heads), channels * product(s.keys, s.kv_heads),
          4.0 * channels * product(visible_pairs(shape), s.heads)};
}

}  // namespace

template <class Describe, class Call>
void ObservedKernels::watch(Describe&& describe, Stream& stream, Call&& call) {
  if (observing())
    observe(describe(), stream, call);
  else
    call();
}

void ObservedKernels::gemm(const GemmArgs& args, Stream& stream) {
  watch([&] { return gemm_call(args, ""); }, stream, [&] { kernels_.gemm(args, stream); });
}

void ObservedKernels::gemm_to_bf16(const GemmToBf16Args& args, Stream& stream) {
  watch(
      [&] {
        OperationCall call = gemm_call(args.product, "");
        call.bytes += (kBf16 - kFp32) * product(args.product.m, args.product.n);
        return call;
      },
      stream, [&] { kernels_.gemm_to_bf16(args, stream); });
}

void ObservedKernels::gemm_gelu_forward(const GemmGeluArgs& args, Stream& stream) {
  if (!fuses_products()) return Kernels::gemm_gelu_forward(args, stream);
  watch(
      [&] {
        OperationCall call = gemm_call(args.product, " and GELU");
        // fp32: the result beside the product. bf16: half of the product's bytes each.
        const double numbers = product(args.product.m, args.product.n);
        call.bytes += args.product.bf16_operands
                          ? numbers * (kBf16 * (args.hidden_bf16 != nullptr ? 2 : 1) - kFp32)
                          : numbers * kFp32;
        return call;
      },
      stream, [&] { kernels_.gemm_gelu_forward(args, stream); });
}

void ObservedKernels::gemm_gelu_backward(const GemmGeluBackwardArgs& args, Stream& stream) {
  if (!fuses_products()) return Kernels::gemm_gelu_backward(args, stream);
  watch(
      [&] {
        OperationCall call = gemm_call(args.product, " and GELU backward");
        call.bytes += kFp32 * product(args.product.m, args.product.n);
        return call;
      },
      stream, [&] { kernels_.gemm_gelu_backward(args, stream); });
}

void ObservedKernels::norm_forward(const NormForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"norm forward", 0, 2 * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.norm_forward(args, stream); });
}

void ObservedKernels::residual_norm_forward(const ResidualNormArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"residual and norm forward", 0,
                             4 * kFp32 * product(args.norm.rows, args.norm.width)};
      },
      stream, [&] { kernels_.residual_norm_forward(args, stream); });
}

void ObservedKernels::norm_backward(const NormBackwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"norm backward", 0,
                             (args.accumulate_dx ? 4 : 3) * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.norm_backward(args, stream); });
}

void ObservedKernels::gelu_forward(const GeluForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"GELU forward", 0, 2 * kFp32 * product(args.count, 1)};
      },
      stream, [&] { kernels_.gelu_forward(args, stream); });
}

void ObservedKernels::gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        const double words = args.hidden_bf16 != nullptr ? 2 : 1;
        return OperationCall{"GELU forward", 0, (kFp32 + words * kBf16) * product(args.count, 1)};
      },
      stream, [&] { kernels_.gelu_bf16_forward(args, stream); });
}

void ObservedKernels::gelu_backward(const GeluBackwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"GELU backward", 0, 3 * kFp32 * product(args.count, 1)};
      },
      stream, [&] { kernels_.gelu_backward(args, stream); });
}

void ObservedKernels::swiglu_forward(const SwigluForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"SwiGLU forward", 0, 3 * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.swiglu_forward(args, stream); });
}

void ObservedKernels::swiglu_backward(const SwigluBackwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"SwiGLU backward", 0, 5 * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.swiglu_backward(args, stream); });
}

void ObservedKernels::swiglu_bf16_forward(const SwigluBf16ForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"SwiGLU forward", 0, 3 * kBf16 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.swiglu_bf16_forward(args, stream); });
}

void ObservedKernels::swiglu_bf16_backward(const SwigluBf16BackwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"SwiGLU backward", 0,
                             (4 * kBf16 + kFp32) * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.swiglu_bf16_backward(args, stream); });
}

void ObservedKernels::residual_forward(const ResidualForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"residual forward", 0,
                             (args.x ? 3 : 2) * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.residual_forward(args, stream); });
}

void ObservedKernels::residual_backward(const ResidualBackwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"residual backward", 0, 2 * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.residual_backward(args, stream); });
}

void ObservedKernels::rotary(const RotaryArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"rotary positions", 0,
                             2 * kFp32 * product(args.rows, args.heads * args.head_size)};
      },
      stream, [&] { kernels_.rotary(args, stream); });
}

void ObservedKernels::embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{
            "embedding forward", 0,
            (args.position_table ? 3 : 2) * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.embedding_forward(args, stream); });
}

void ObservedKernels::embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{
            "embedding backward", 0,
            (args.dposition_table ? 5 : 3) * kFp32 * product(args.rows, args.width)};
      },
      stream, [&] { kernels_.embedding_backward(args, stream); });
}

void ObservedKernels::attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  watch(
      [&] {
        const AttentionSize size = size_of(args.shape, device_, stream);
        return OperationCall{"attention forward", size.flops_forward,
                             kFp32 * ((args.merge ? 3 : 2) * size.queries + 2 * size.keys)};
      },
      stream, [&] { kernels_.attention_forward(args, stream); });
}

void ObservedKernels::attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{
            "attention delta", 0,
            2 * kFp32 * product(args.batch * args.queries, args.heads * args.head_size)};
      },
      stream, [&] { kernels_.attention_delta(args, stream); });
}

void ObservedKernels::attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  watch(
      [&] {
        const AttentionSize size = size_of(args.shape, device_, stream);
        return OperationCall{"attention backward", 2 * size.flops_forward,
                             kFp32 * (4 * size.queries + 6 * size.keys)};
      },
      stream, [&] { kernels_.attention_backward(args, stream); });
}

void ObservedKernels::cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"cross-entropy", 0,
                             (args.backward ? 2 : 1) * kFp32 * product(args.rows, args.row_stride)};
      },
      stream, [&] { kernels_.cross_entropy(args, stream); });
}

void ObservedKernels::adamw(const AdamwArgs& args, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"AdamW", 0, 7 * kFp32 * product(args.count, 1)};
      },
      stream, [&] { kernels_.adamw(args, stream); });
}

void ObservedKernels::add(std::int64_t count, const float* x, float* y, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"add", 0, 3 * kFp32 * product(count, 1)};
      },
      stream, [&] { kernels_.add(count, x, y, stream); });
}

void ObservedKernels::add_rows(std::int64_t rows, std::int64_t cols, const float* x,
                               std::int64_t x_row, float* y, std::int64_t y_row, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"add", 0, 3 * kFp32 * product(rows, cols)};
      },
      stream, [&] { kernels_.add_rows(rows, cols, x, x_row, y, y_row, stream); });
}

void ObservedKernels::add_column_sums(std::int64_t rows, std::int64_t cols, const float* x,
                                      float* y, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"column sums", 0, kFp32 * product(rows, cols)};
      },
      stream, [&] { kernels_.add_column_sums(rows, cols, x, y, stream); });
}

double ObservedKernels::sum_of_squares(std::int64_t count, const float* x, Stream& stream) {
  double sum = 0;
  watch(
      [&] {
        return OperationCall{"sum of squares", 0, kFp32 * product(count, 1)};
      },
      stream, [&] { sum = kernels_.sum_of_squares(count, x, stream); });
  return sum;
}

void ObservedKernels::round_to_bf16(std::int64_t count, float* x, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"rounding to bf16", 0, 2 * kFp32 * product(count, 1)};
      },
      stream, [&] { kernels_.round_to_bf16(count, x, stream); });
}

void ObservedKernels::to_bf16(std::int64_t rows, std::int64_t cols, const float* x,
                              std::int64_t x_row, std::uint16_t* y, Stream& stream) {
  watch(
      [&] {
        return OperationCall{"rounding to bf16", 0, (kFp32 + kBf16) * product(rows, cols)};
      },
      stream, [&] { kernels_.to_bf16(rows, cols, x, x_row, y, stream); });
}

void ObservedKernels::from_bf16(std::int64_t count, const std::uint16_t* x, float* y,
                                Stream& stream) {
  watch(
      [&] {
        return OperationCall{"widening from bf16", 0, (kFp32 + kBf16) * product(count, 1)};
      },
      stream, [&] { kernels_.from_bf16(count, x, y, stream); });
}

}  // namespace longspan::model
