// Matrix products with GELU in cuBLASLt's epilogue, where it is the faster way. Its GELU is the
// tanh form, as is ours, but not to the last digits: so with bfloat16 operands only, and not where
// every run is to give the same bits without having measured. Otherwise the operations one after
// the other (kernels/composed.cpp), as in the emulator.
#if !defined(LONGSPAN_CUDA_EMULATED)
#include "model/kernels/cuda/gemm_state.hpp"
#include "model/kernels/cuda/range.hpp"

namespace longspan::model {
namespace {

/// Whether the epilogues take this product: operands that are rounded already, rows of whole 16
/// bytes, which is also what the fast algorithms want.
bool fusible(const GemmArgs& p, std::initializer_list<const void*> others) {
  if (!p.bf16_operands || p.a_bf16 == nullptr || p.b_bf16 == nullptr) return false;
  if (p.m <= 0 || p.n <= 0 || p.k <= 0 || p.ldc != p.n) return false;
  if (p.n % 8 != 0 || p.lda % 8 != 0 || p.ldb % 8 != 0) return false;
  for (const void* pointer : {static_cast<const void*>(p.a_bf16),
                              static_cast<const void*>(p.b_bf16), static_cast<const void*>(p.c)})
    if (alignment(pointer) < 16) return false;
  return std::all_of(others.begin(), others.end(),
                     [](const void* p) { return p == nullptr || alignment(p) >= 16; });
}

GemmShape shape_of(const GemmArgs& p, GemmEpilogue epilogue) {
  return {p.m,  p.n, p.k,     p.lda, p.ldb, p.ldc, p.trans_a, p.trans_b, false, p.bias != nullptr,
          true, 16,  epilogue};
}

}  // namespace

bool CudaGemmState::run_fused(const GemmShape& s, const Operands& o,
                              const std::function<void()>& apart, Stream& stream) {
  auto found = fused_plans.find(s);
  if (found == fused_plans.end()) {
    if (capturing(stream)) return false;  // nothing can be timed; asked again later
    found = fused_plans.emplace(s, choose_fused(s, o, apart, stream)).first;
  }
  if (!found->second) return false;
  LONGSPAN_BLAS(submit(*found->second, false, o, o.c, stream));
  return true;
}

std::optional<Plan> CudaGemmState::choose_fused(const GemmShape& s, const Operands& o,
                                                const std::function<void()>& apart,
                                                Stream& stream) {
  if (const auto found = known.find(s)) {
    if (!found->epilogue_fused) return std::nullopt;
    if (auto plan = plan_of(s, *found, true, o)) return plan;
  }
  std::vector<Plan> candidates;
  {
    const Descriptors asked(s, true);
    point(asked, o);  // their alignment is part of the question
    for (const auto& algorithm : suggestions(s, asked))
      candidates.push_back({Descriptors(s, true), algorithm, false});
  }
  std::vector<double> fused;
  for (const Plan& plan : candidates) fused.push_back(seconds(plan, s, o, o.c, stream));
  std::optional<std::size_t> best;
  if (!candidates.empty()) {
    const double time = seconds(
        [&] {
          apart();
          return true;
        },
        stream);
    best = fastest_fused(fused, time);
  }
  GemmAlgorithm result;
  if (best) {
    result = packed(candidates[*best].algorithm, false);
    result.epilogue_fused = true;
  }
  known.add(s, result);
  if (!best) return std::nullopt;
  return std::move(candidates[*best]);
}

bool CudaKernels::fuses_products() const {
  return !deterministic_;
}

void CudaKernels::gemm_gelu_forward(const GemmGeluArgs& args, Stream& stream) {
  const Range range("matrix product and GELU");
  const auto apart = [&] { Kernels::gemm_gelu_forward(args, stream); };
  const GemmArgs& p = args.product;
  if (deterministic_ || p.accumulate || !fusible(p, {p.bias, args.hidden_bf16, args.y_bf16}))
    return apart();
  if (gemm_ == nullptr) gemm_ = std::make_shared<CudaGemmState>(device_, deterministic_);
  // A result in bfloat16 takes a bias in bfloat16.
  Buffer<std::uint16_t> bias;
  if (p.bias != nullptr) {
    bias = Buffer<std::uint16_t>(device_, p.n);
    cuda::to_bf16(1, p.n, p.bias, p.n, bias.data(), p.n, stream);
  }
  Operands operands{p.a_bf16, p.b_bf16,         reinterpret_cast<float*>(args.y_bf16),
                    p.bias,   args.hidden_bf16, bias.data()};
  const GemmShape shape =
      shape_of(p, args.hidden_bf16 != nullptr ? GemmEpilogue::kGeluKeep : GemmEpilogue::kGelu);
  if (!gemm_->run_fused(shape, operands, apart, stream)) apart();
}

void CudaKernels::gemm_gelu_backward(const GemmGeluBackwardArgs& args, Stream& stream) {
  const Range range("matrix product and GELU backward");
  const GemmArgs& p = args.product;
  // A part of a sum over several products does not know the whole: its trials would spoil it.
  if (deterministic_ || p.accumulate || p.bias != nullptr || !fusible(p, {args.hidden}))
    return Kernels::gemm_gelu_backward(args, stream);
  if (gemm_ == nullptr) gemm_ = std::make_shared<CudaGemmState>(device_, deterministic_);
  // The epilogue overwrites the bias' gradient.
  Buffer<float> dbias;
  if (args.dbias != nullptr) dbias = Buffer<float>(device_, p.n);
  const Operands operands{p.a_bf16, p.b_bf16, p.c, nullptr, args.hidden, dbias.data()};
  const GemmShape shape = shape_of(
      p, args.dbias != nullptr ? GemmEpilogue::kGeluBackwardBias : GemmEpilogue::kGeluBackward);
  GemmGeluBackwardArgs trial = args;
  if (args.dbias != nullptr) trial.dbias = dbias.data();
  if (!gemm_->run_fused(
          shape, operands, [&] { Kernels::gemm_gelu_backward(trial, stream); }, stream))
    return Kernels::gemm_gelu_backward(args, stream);
  if (args.dbias != nullptr) cuda::add(p.n, dbias.data(), args.dbias, stream);
}

}  // namespace longspan::model
#endif
