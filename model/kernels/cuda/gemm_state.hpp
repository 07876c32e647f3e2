/// What the matrix products of gemm.cpp and gemm_epilogues.cpp share: cuBLASLt's handle and
/// descriptors, algorithms tuned or known, workspaces. For these two files alone; not in the
/// emulator, which has no cuBLASLt.
#pragma once

#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/kernels/cuda/cuda_kernels.hpp"
#include "model/kernels/cuda/gemm_algorithms.hpp"
#include "model/kernels/cuda/kernels_cuda.hpp"
#include "parallel/cuda/check.hpp"
#include "parallel/cuda/stream.hpp"
#include "parallel/error.hpp"
#include "parallel/handle.hpp"

namespace longspan::model {

/// NVIDIA's rule for Hopper; with less, split-k and stream-k algorithms are not offered.
inline constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20;
inline constexpr int kCandidates = 8;
inline constexpr int kTimedRuns = 5;

inline void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail("cuBLASLt: {} in {}", cublasLtGetStatusString(status), call);
}
#define LONGSPAN_BLAS(call) check_blas((call), #call)

using LtHandle = Handle<cublasLtHandle_t, nullptr, cublasLtDestroy>;
using Operation = Handle<cublasLtMatmulDesc_t, nullptr, cublasLtMatmulDescDestroy>;
using Layout = Handle<cublasLtMatrixLayout_t, nullptr, cublasLtMatrixLayoutDestroy>;
using Preference = Handle<cublasLtMatmulPreference_t, nullptr, cublasLtMatmulPreferenceDestroy>;

/// `stored`: rows and columns as the operand lies in memory, row-major. cuBLASLt's matrices are
/// column-major, so to it every matrix is its transpose.
inline Layout layout(cudaDataType type, std::int64_t stored_rows, std::int64_t stored_cols,
                     std::int64_t stride) {
  cublasLtMatrixLayout_t raw = nullptr;
  LONGSPAN_BLAS(cublasLtMatrixLayoutCreate(&raw, type, static_cast<std::uint64_t>(stored_cols),
                                           static_cast<std::uint64_t>(stored_rows), stride));
  return Layout(raw);
}

template <class Value>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  LONGSPAN_BLAS(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)));
}
template <class Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const Value& value) {
  LONGSPAN_BLAS(
      cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)));
}

inline cublasLtEpilogue_t blas_epilogue(const GemmShape& s) {
  switch (s.epilogue) {
    case GemmEpilogue::kNone:
      return CUBLASLT_EPILOGUE_BIAS;
    case GemmEpilogue::kGelu:
      return s.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    case GemmEpilogue::kGeluKeep:
      return s.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case GemmEpilogue::kGeluBackward:
      return CUBLASLT_EPILOGUE_DGELU;
    case GemmEpilogue::kGeluBackwardBias:
      return CUBLASLT_EPILOGUE_DGELU_BGRAD;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

/// c^T = op(b)^T op(a)^T: cuBLASLt's first operand is b, its second a, and its D has n rows, so
/// that its bias, one number a row, is ours, one a column.
struct Descriptors {
  Operation operation;
  Layout a, b, c;

  /// `fused`: the bias or, of a shape with an epilogue, all of it.
  Descriptors(const GemmShape& s, bool fused) {
    cublasLtMatmulDesc_t raw = nullptr;
    // Never TF32: CUBLAS_COMPUTE_32F multiplies fp32 operands in fp32.
    LONGSPAN_BLAS(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    operation = Operation(raw);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSA, s.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSB, s.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    const bool forward = s.epilogue == GemmEpilogue::kGelu || s.epilogue == GemmEpilogue::kGeluKeep;
    // What stands before GELU has the result's type: bfloat16 forward, fp32 on the way back.
    const cudaDataType type = s.bf16 ? CUDA_R_16BF : CUDA_R_32F,
                       result = forward ? CUDA_R_16BF : CUDA_R_32F;
    if (fused) {
      const cublasLtEpilogue_t epilogue = blas_epilogue(s);
      set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
      if (s.epilogue == GemmEpilogue::kNone || (forward && s.bias) ||
          s.epilogue == GemmEpilogue::kGeluBackwardBias)
        set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, result);
      if (s.epilogue != GemmEpilogue::kNone && s.epilogue != GemmEpilogue::kGelu)
        set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, s.ldc);
    }
    a = layout(type, s.trans_a ? s.k : s.m, s.trans_a ? s.m : s.k, s.lda);
    b = layout(type, s.trans_b ? s.n : s.k, s.trans_b ? s.k : s.n, s.ldb);
    c = layout(result, s.m, s.n, s.ldc);
  }
};

/// A product ready to run; `bias_fused` false with a bias: a kernel of its own adds it.
struct Plan {
  Descriptors descriptors;
  cublasLtMatmulAlgo_t algorithm;
  bool bias_fused;
};

/// Where the operands of one call lie.
struct Operands {
  const void *a, *b;
  float* c;  ///< the result; with GELU in the epilogue really bfloat16 words
  const float* bias;
  /// Of a fused epilogue: what stands before GELU, and the bias (bfloat16) or its gradient (fp32).
  const void* aux = nullptr;
  const void* epilogue_bias = nullptr;
};

inline std::int64_t alignment(const void* pointer) {
  const auto place = reinterpret_cast<std::uintptr_t>(pointer);
  return static_cast<std::int64_t>(std::min<std::uintptr_t>(16, place & (~place + 1)));
}

inline GemmAlgorithm packed(const cublasLtMatmulAlgo_t& algorithm, bool bias_fused) {
  static_assert(sizeof(algorithm) == sizeof(GemmAlgorithm::bytes));
  GemmAlgorithm result;
  std::memcpy(result.bytes.data(), &algorithm, sizeof(algorithm));
  result.bias_fused = bias_fused;
  return result;
}

/// What the algorithms of another GPU have in common with ours is only the file.
inline std::string gpu_kind() {
  int device = 0;
  cudaDeviceProp properties;
  LONGSPAN_CUDA(cudaGetDevice(&device));
  LONGSPAN_CUDA(cudaGetDeviceProperties(&properties, device));
  return fmt::format("{}, {} multiprocessors", properties.name, properties.multiProcessorCount);
}

struct CudaGemmState {
  CudaGemmState(Device& where, bool fixed)
      : device(where),
        deterministic(fixed),
        known(fixed ? "" : gemm_algorithms_path(), gpu_kind(), cublasLtGetVersion()) {
    cublasLtHandle_t raw = nullptr;
    LONGSPAN_BLAS(cublasLtCreate(&raw));
    handle = LtHandle(raw);
  }

  /// A fused epilogue's own operands.
  static void point(const Descriptors& d, const Operands& o) {
    if (o.aux != nullptr) set(d.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, o.aux);
    if (o.epilogue_bias != nullptr)
      set(d.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.epilogue_bias);
  }

  cublasStatus_t submit(const Plan& plan, bool accumulate, const Operands& o, float* d,
                        Stream& stream) {
    const float one = 1.0f, beta = accumulate ? 1.0f : 0.0f;
    if (plan.bias_fused) set(plan.descriptors.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias);
    point(plan.descriptors, o);
    return cublasLtMatmul(handle.get(), plan.descriptors.operation.get(), &one, o.b,
                          plan.descriptors.b.get(), o.a, plan.descriptors.a.get(), &beta, o.c,
                          plan.descriptors.c.get(), d, plan.descriptors.c.get(), &plan.algorithm,
                          workspace(stream), static_cast<std::size_t>(kWorkspaceBytes),
                          longspan::cuda::native(stream));
  }

  /// The library's suggestions, best first; none if it cannot fuse.
  std::vector<cublasLtMatmulAlgo_t> suggestions(const GemmShape& s, const Descriptors& d) {
    cublasLtMatmulPreference_t raw = nullptr;
    LONGSPAN_BLAS(cublasLtMatmulPreferenceCreate(&raw));
    const Preference preference(raw);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
        static_cast<std::uint64_t>(kWorkspaceBytes));
    // Not the one that adds parts in the order in which they come.
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE |
                                   CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(preference, attribute, static_cast<std::uint32_t>(s.alignment));
    cublasLtMatmulHeuristicResult_t results[kCandidates];
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle.get(), d.operation.get(), d.b.get(), d.a.get(), d.c.get(), d.c.get(),
        preference.get(), kCandidates, results, &found);
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; ++i)
      if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
    return algorithms;
  }

  /// One run in seconds, its bias included; infinite if the algorithm does not take these operands.
  double seconds(const Plan& plan, const GemmShape& s, const Operands& o, float* d,
                 Stream& stream) {
    return seconds(
        [&] {
          if (submit(plan, s.accumulate, o, d, stream) != CUBLAS_STATUS_SUCCESS) return false;
          if (s.bias && !plan.bias_fused && s.epilogue == GemmEpilogue::kNone)
            cuda::start_from_bias(s.m, s.n, o.bias, true, d, s.ldc, stream);
          return true;
        },
        stream);
  }
  /// The shortest of several runs of `once`; infinite if it says that it cannot run.
  double seconds(const std::function<bool()>& once, Stream& stream) {
    double best = std::numeric_limits<double>::infinity();
    for (int run = 0; run < 1 + kTimedRuns; ++run) {
      // Operands that the last run left in the second-level cache would flatter small products.
      device.fill_zero(workspace(stream), static_cast<std::size_t>(kWorkspaceBytes), stream);
      longspan::cuda::Event begin(true), end(true);
      begin.record(stream);
      if (!once()) return std::numeric_limits<double>::infinity();
      end.record(stream);
      end.synchronize();
      if (run > 0) best = std::min(best, begin.seconds_until(end));
    }
    return best;
  }

  /// Every suggestion with and without the fused bias: the fastest, or the first where nothing may
  /// be timed.
  Plan choose(const GemmShape& s, const Operands& o, Stream& stream) {
    if (const auto found = known.find(s))
      if (auto plan = plan_of(s, *found, found->bias_fused, o)) return std::move(*plan);
    std::vector<Plan> plans;
    for (const bool fused : {true, false}) {
      if (fused && !s.bias) continue;
      for (const auto& algorithm : suggestions(s, Descriptors(s, fused)))
        plans.push_back({Descriptors(s, fused), algorithm, fused});
    }
    if (plans.empty())
      fail(
          "cuBLASLt has no algorithm for [{}, {}] x [{}, {}] (rows {}, {}, {} apart, {}, aligned "
          "to {} bytes)",
          s.m, s.k, s.k, s.n, s.lda, s.ldb, s.ldc, s.bf16 ? "bfloat16" : "fp32", s.alignment);
    if (deterministic || plans.size() == 1 || capturing(stream)) return std::move(plans.front());
    // The trials of a product that accumulates write elsewhere.
    Buffer<float> elsewhere;
    if (s.accumulate) {
      try {
        elsewhere = Buffer<float>(device, s.m, s.ldc);
      } catch (const Error&) {
        return std::move(plans.front());  // no memory to try in
      }
    }
    float* const d = s.accumulate ? elsewhere.data() : o.c;
    std::size_t best = 0;
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < plans.size(); ++i) {
      const double time = seconds(plans[i], s, o, d, stream);
      if (time < least) least = time, best = i;
    }
    known.add(s, packed(plans[best].algorithm, plans[best].bias_fused));
    return std::move(plans[best]);
  }

  void run(const GemmShape& s, const Operands& o, Stream& stream) {
    auto found = plans.find(s);
    if (found == plans.end()) found = plans.emplace(s, choose(s, o, stream)).first;
    const Plan& plan = found->second;
    LONGSPAN_BLAS(submit(plan, s.accumulate, o, o.c, stream));
    if (s.bias && !plan.bias_fused)
      cuda::start_from_bias(s.m, s.n, o.bias, true, o.c, s.ldc, stream);
  }

  /// Runs the product with its epilogue in one pass if that was, or now is, found to be faster than
  /// `apart`, which does the same by itself and whose trials may write the results again and again.
  /// False: nothing was submitted that counts. In gemm_epilogues.cpp.
  bool run_fused(const GemmShape& s, const Operands& o, const std::function<void()>& apart,
                 Stream& stream);
  std::optional<Plan> choose_fused(const GemmShape& s, const Operands& o,
                                   const std::function<void()>& apart, Stream& stream);
  /// The plan of an entry of the file; nothing if the library does not take it.
  std::optional<Plan> plan_of(const GemmShape& s, const GemmAlgorithm& known, bool fused,
                              const Operands& o) {
    Plan plan{Descriptors(s, fused), {}, known.bias_fused};
    std::memcpy(&plan.algorithm, known.bytes.data(), sizeof(plan.algorithm));
    point(plan.descriptors, o);
    cublasLtMatmulHeuristicResult_t result;
    const Descriptors& d = plan.descriptors;
    if (cublasLtMatmulAlgoCheck(handle.get(), d.operation.get(), d.b.get(), d.a.get(), d.c.get(),
                                d.c.get(), &plan.algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > static_cast<std::size_t>(kWorkspaceBytes))
      return std::nullopt;
    return plan;
  }

  std::byte* workspace(Stream& stream) {
    Buffer<std::byte>& buffer = workspaces[&stream];
    if (buffer.empty()) buffer = Buffer<std::byte>(device, kWorkspaceBytes);
    return buffer.data();
  }

  static bool capturing(Stream& stream) {
    cudaStreamCaptureStatus status;
    LONGSPAN_CUDA(cudaStreamIsCapturing(longspan::cuda::native(stream), &status));
    return status != cudaStreamCaptureStatusNone;
  }

  Device& device;
  bool deterministic;
  GemmAlgorithms known;
  LtHandle handle;
  std::map<GemmShape, Plan> plans;
  std::map<GemmShape, std::optional<Plan>> fused_plans;  ///< none: apart is faster
  std::map<Stream*, Buffer<std::byte>> workspaces;
};

}  // namespace longspan::model
