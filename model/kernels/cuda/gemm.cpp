// Matrix products through cuBLASLt. In the emulator tests/support/cuda_emulator/gemm.cpp stands
// here.
#if !defined(LONGSPAN_CUDA_EMULATED)
#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "model/kernels/cuda/cuda_kernels.hpp"
#include "model/kernels/cuda/gemm_algorithms.hpp"
#include "model/kernels/cuda/kernels_cuda.hpp"
#include "model/kernels/cuda/range.hpp"
#include "parallel/cuda/check.hpp"
#include "parallel/cuda/stream.hpp"
#include "parallel/error.hpp"
#include "parallel/handle.hpp"

namespace longspan::model {
namespace {

/// NVIDIA's rule for Hopper; with less, split-k and stream-k algorithms are not offered.
constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20;
/// Elements of an operand that is rounded here: 256 MiB. Larger products are cut.
constexpr std::int64_t kScratchElements = std::int64_t{1} << 27;
constexpr int kCandidates = 8;
constexpr int kTimedRuns = 5;

void check_blas(cublasStatus_t status, const char* call) {
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
Layout layout(cudaDataType type, std::int64_t stored_rows, std::int64_t stored_cols,
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

/// c^T = op(b)^T op(a)^T: cuBLASLt's first operand is b, its second a, and its D has n rows, so
/// that its bias, one number a row, is ours, one a column.
struct Descriptors {
  Operation operation;
  Layout a, b, c;

  Descriptors(const GemmShape& s, bool bias_fused) {
    cublasLtMatmulDesc_t raw = nullptr;
    // Never TF32: CUBLAS_COMPUTE_32F multiplies fp32 operands in fp32.
    LONGSPAN_BLAS(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    operation = Operation(raw);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSA, s.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSB, s.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (bias_fused) {
      set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
    }
    const cudaDataType type = s.bf16 ? CUDA_R_16BF : CUDA_R_32F;
    a = layout(type, s.trans_a ? s.k : s.m, s.trans_a ? s.m : s.k, s.lda);
    b = layout(type, s.trans_b ? s.n : s.k, s.trans_b ? s.k : s.n, s.ldb);
    c = layout(CUDA_R_32F, s.m, s.n, s.ldc);
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
  float* c;
  const float* bias;
};

std::int64_t alignment(const void* pointer) {
  const auto place = reinterpret_cast<std::uintptr_t>(pointer);
  return static_cast<std::int64_t>(std::min<std::uintptr_t>(16, place & (~place + 1)));
}

GemmAlgorithm packed(const cublasLtMatmulAlgo_t& algorithm, bool bias_fused) {
  static_assert(sizeof(algorithm) == sizeof(GemmAlgorithm::bytes));
  GemmAlgorithm result;
  std::memcpy(result.bytes.data(), &algorithm, sizeof(algorithm));
  result.bias_fused = bias_fused;
  return result;
}

/// What the algorithms of another GPU have in common with ours is only the file.
std::string gpu_kind() {
  int device = 0;
  cudaDeviceProp properties;
  LONGSPAN_CUDA(cudaGetDevice(&device));
  LONGSPAN_CUDA(cudaGetDeviceProperties(&properties, device));
  return fmt::format("{}, {} multiprocessors", properties.name, properties.multiProcessorCount);
}

}  // namespace

struct CudaGemmState {
  CudaGemmState(Device& where, bool fixed)
      : device(where),
        deterministic(fixed),
        known(fixed ? "" : gemm_algorithms_path(), gpu_kind(), cublasLtGetVersion()) {
    cublasLtHandle_t raw = nullptr;
    LONGSPAN_BLAS(cublasLtCreate(&raw));
    handle = LtHandle(raw);
  }

  cublasStatus_t submit(const Plan& plan, bool accumulate, const Operands& o, float* d,
                        Stream& stream) {
    const float one = 1.0f, beta = accumulate ? 1.0f : 0.0f;
    if (plan.bias_fused) set(plan.descriptors.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias);
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
    double best = std::numeric_limits<double>::infinity();
    for (int run = 0; run < 1 + kTimedRuns; ++run) {
      // Operands that the last run left in the second-level cache would flatter small products.
      device.fill_zero(workspace(stream), static_cast<std::size_t>(kWorkspaceBytes), stream);
      longspan::cuda::Event begin(true), end(true);
      begin.record(stream);
      if (submit(plan, s.accumulate, o, d, stream) != CUBLAS_STATUS_SUCCESS)
        return std::numeric_limits<double>::infinity();
      if (s.bias && !plan.bias_fused)
        cuda::start_from_bias(s.m, s.n, o.bias, true, d, s.ldc, stream);
      end.record(stream);
      end.synchronize();
      if (run > 0) best = std::min(best, begin.seconds_until(end));
    }
    return best;
  }

  /// Every suggestion with and without the fused bias: the fastest, or the first where nothing may
  /// be timed.
  Plan choose(const GemmShape& s, const Operands& o, Stream& stream) {
    if (const auto found = known.find(s)) {
      Plan plan{Descriptors(s, found->bias_fused), {}, found->bias_fused};
      std::memcpy(&plan.algorithm, found->bytes.data(), sizeof(plan.algorithm));
      cublasLtMatmulHeuristicResult_t result;
      const Descriptors& d = plan.descriptors;
      if (cublasLtMatmulAlgoCheck(handle.get(), d.operation.get(), d.b.get(), d.a.get(), d.c.get(),
                                  d.c.get(), &plan.algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
          result.workspaceSize <= static_cast<std::size_t>(kWorkspaceBytes))
        return plan;
    }
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
  std::map<Stream*, Buffer<std::byte>> workspaces;
};

namespace {

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
