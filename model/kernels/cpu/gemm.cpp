#include "model/kernels/cpu/gemm.hpp"

#include <dnnl.h>
#include <omp.h>
#include <dnnl.hpp>

#include <algorithm>
#include <compare>
#include <list>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>

#include "model/kernels/cpu/bf16_few_rows.hpp"
#include "model/kernels/cpu/bf16_operand.hpp"
#include "model/kernels/cpu/gemm_amx.hpp"
#include "model/kernels/cpu/instruction_set.hpp"
#include "parallel/device.hpp"
#include "parallel/error.hpp"

namespace longspan::model::cpu {
namespace {

using dnnl::memory;

/// One bfloat16 product sums at most so many terms before it is added to c. Measured at [1024,
/// 50304] x [50304, 768]: oneDNN loses half of its speed on one long sum, and the rounded operands
/// would take as many times the memory.
constexpr std::int64_t kLongestBf16Sum = 4096;
/// Elements of one rounded operand: 32 MiB. With few rows (generation) a weight is read once and
/// rounding it is most of the work: then a block stays in the second-level cache on its way to the
/// product.
constexpr std::int64_t kScratchElements = 1 << 24;
constexpr std::int64_t kCachedElements = 1 << 18;
constexpr std::int64_t kFewRows = 16;
/// oneDNN's fp32 product of a transposed a with few columns (the weight gradients of a narrow
/// model) gets slower with the length of its sums: [1536, 16384] x [16384, 512] runs at 209
/// GFLOP/s, in sums of 512 at 247. No shape with so few columns was slower in pieces.
constexpr std::int64_t kFewColumns = 512, kTransposedSum = 512;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// Everything a compiled product depends on; pointers do not matter. lda and ldb are those of the
/// rounded operands.
struct Key {
  std::int64_t m, n, k, lda, ldb, ldc;
  bool trans_a, trans_b, accumulate, bias;
  int threads;  ///< oneDNN fixes the split over threads when it compiles
  auto operator<=>(const Key&) const = default;
};

/// A compiled product of bfloat16 matrices; `pack_b` (if any) brings b into the layout the product
/// reads.
struct Product {
  memory::desc a, b, packed_b, c, bias, scratchpad;
  dnnl::matmul product;
  dnnl::reorder pack_b;
};

memory::desc matrix(std::int64_t rows, std::int64_t cols, bool transposed, std::int64_t stride,
                    memory::data_type type) {
  return {{rows, cols}, type, transposed ? memory::dims{1, stride} : memory::dims{stride, 1}};
}

/// The user's scratch: oneDNN's own belongs to the thread that compiled, and several threads may
/// call.
dnnl::primitive_attr attributes(bool accumulate) {
  dnnl::primitive_attr result;
  result.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops sum;
  if (accumulate) sum.append_sum(1.0f);
  result.set_post_ops(sum);
  return result;
}

/// Nothing if oneDNN has no fast product of bfloat16 numbers on this CPU.
std::optional<Product> compile(const Key& key) {
  // Each set of instructions is a set of bits. Without these oneDNN emulates, slower than its fp32
  // product.
  if ((dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) !=
      dnnl_cpu_isa_avx512_core_bf16)
    return std::nullopt;
  Product p;
  p.a = matrix(key.m, key.k, key.trans_a, key.lda, memory::data_type::bf16);
  p.b = matrix(key.k, key.n, key.trans_b, key.ldb, memory::data_type::bf16);
  p.c = matrix(key.m, key.n, false, key.ldc, memory::data_type::f32);
  if (key.bias) p.bias = {{1, key.n}, memory::data_type::f32, memory::format_tag::ab};
  // A transposed a is copied inside the product, again for every block of b: with b packed it costs
  // a quarter less.
  const bool pack = key.trans_a;
  const memory::desc b =
      pack ? memory::desc({key.k, key.n}, memory::data_type::bf16, memory::format_tag::any) : p.b;
  try {
    const auto description =
        key.bias ? dnnl::matmul::desc(p.a, b, p.bias, p.c) : dnnl::matmul::desc(p.a, b, p.c);
    const dnnl::matmul::primitive_desc compiled(description, attributes(key.accumulate), engine());
    if (std::string_view(compiled.impl_info_str()).starts_with("ref")) return std::nullopt;
    p.packed_b = compiled.weights_desc();
    p.scratchpad = compiled.scratchpad_desc();
    p.product = dnnl::matmul(compiled);
    if (p.packed_b != p.b) {
      const dnnl::reorder::primitive_desc packing(engine(), p.b, engine(), p.packed_b,
                                                  attributes(false));
      if (packing.scratchpad_desc().get_size() > p.scratchpad.get_size())
        p.scratchpad = packing.scratchpad_desc();
      p.pack_b = dnnl::reorder(packing);
    }
    return p;
  } catch (const dnnl::error&) {
    return std::nullopt;
  }
}

/// The most recently used products. A training step needs some tens; generation adds some per
/// prompt length.
class ProductCache {
 public:
  std::optional<Product> get(const Key& key) {
    const std::lock_guard lock(mutex_);
    if (const auto found = index_.find(key); found != index_.end()) {
      recent_.splice(recent_.begin(), recent_, found->second);
      return found->second->product;
    }
    recent_.push_front({key, compile(key)});
    index_[key] = recent_.begin();
    if (recent_.size() > kCapacity) {
      index_.erase(recent_.back().key);
      recent_.pop_back();
    }
    return recent_.front().product;
  }

 private:
  static constexpr std::size_t kCapacity = 256;
  struct Entry {
    Key key;
    std::optional<Product> product;
  };
  std::mutex mutex_;
  std::list<Entry> recent_;
  std::map<Key, std::list<Entry>::iterator> index_;
};

std::optional<Product> compiled_product(const GemmArgs& args) {
  static ProductCache& cache = *new ProductCache;  // never destroyed: oneDNN may be gone by then
  // What is rounded here is rounded into a dense matrix.
  const std::int64_t lda = args.a_bf16 != nullptr ? args.lda : args.trans_a ? args.m : args.k;
  const std::int64_t ldb = args.b_bf16 != nullptr ? args.ldb : args.trans_b ? args.k : args.n;
  return cache.get({args.m, args.n, args.k, lda, ldb, args.ldc, args.trans_a, args.trans_b,
                    args.accumulate, args.bias != nullptr, omp_get_max_threads()});
}

memory bind(const memory::desc& desc, const void* data) {
  return memory(desc, engine(), const_cast<void*>(data));  // oneDNN knows no const
}

void execute(const Product& p, const GemmArgs& args, const std::uint16_t* a,
             const std::uint16_t* b) {
  dnnl::stream stream(engine());
  const Buffer<std::byte> scratch(cpu_device(), static_cast<std::int64_t>(p.scratchpad.get_size()));
  const memory scratch_memory = bind(p.scratchpad, scratch.data());
  Buffer<std::byte> packed;
  if (p.pack_b) {
    packed = Buffer<std::byte>(cpu_device(), static_cast<std::int64_t>(p.packed_b.get_size()));
    p.pack_b.execute(stream, {{DNNL_ARG_FROM, bind(p.b, b)},
                              {DNNL_ARG_TO, bind(p.packed_b, packed.data())},
                              {DNNL_ARG_SCRATCHPAD, scratch_memory}});
  }
  std::unordered_map<int, memory> arguments = {
      {DNNL_ARG_SRC, bind(p.a, a)},
      {DNNL_ARG_WEIGHTS, p.pack_b ? bind(p.packed_b, packed.data()) : bind(p.b, b)},
      {DNNL_ARG_DST, bind(p.c, args.c)},
      {DNNL_ARG_SCRATCHPAD, scratch_memory}};
  if (args.bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, bind(p.bias, args.bias));
  p.product.execute(stream, arguments);
  stream.wait();
}

/// c = (accumulate ? c : 0) + bias: what a product is then added to.
void start_from_bias(const GemmArgs& args) {
  constexpr std::int64_t kParallelElements =
      1 << 15;  // below, starting threads costs more than they save
#pragma omp parallel for schedule(static) if (args.m * args.n >= kParallelElements)
  for (std::int64_t i = 0; i < args.m; ++i) {
    float* c = args.c + i * args.ldc;
    for (std::int64_t j = 0; j < args.n; ++j)
      c[j] = (args.accumulate ? c[j] : 0.0f) + (args.bias != nullptr ? args.bias[j] : 0.0f);
  }
}

/// dnnl_sgemm and not a matmul primitive: as fast or faster for every product of a training step,
/// and twice as fast where the primitive is worst ([3072, 768] += [tokens, 3072]^T x [tokens,
/// 768]), even with the bias written first.
void gemm_fp32(const GemmArgs& args) {
  if (args.bias != nullptr) start_from_bias(args);
  const bool adds = args.accumulate || args.bias != nullptr;
  const std::int64_t chunk =
      args.trans_a && args.n <= kFewColumns ? std::min(kTransposedSum, args.k) : args.k;
  for (std::int64_t p = 0; p < args.k; p += chunk) {
    const float* a = args.a + (args.trans_a ? p * args.lda : p);
    const float* b = args.b + (args.trans_b ? p : p * args.ldb);
    const dnnl::status status =
        dnnl::sgemm(args.trans_a ? 'T' : 'N', args.trans_b ? 'T' : 'N', args.m, args.n,
                    std::min(chunk, args.k - p), 1.0f, a, args.lda, b, args.ldb,
                    adds || p > 0 ? 1.0f : 0.0f, args.c, args.ldc);
    if (status != dnnl::status::success)
      fail(
          "oneDNN cannot multiply [{}, {}] by [{}, {}] (status {}): the memory may be used up, try "
          "shorter sequences",
          args.m, args.k, args.k, args.n, static_cast<int>(status));
  }
}

/// A matrix of bfloat16 numbers: the caller's if it is rounded already, else rounded here.
struct Rounded {
  Buffer<std::uint16_t> scratch;
  const std::uint16_t* data;

  Rounded(const std::uint16_t* bits, const float* numbers, std::int64_t rows, std::int64_t cols,
          std::int64_t stride)
      : data(bits) {
    if (bits != nullptr) return;
    scratch = Buffer<std::uint16_t>(cpu_device(), rows, cols);
    convert_to_bf16(numbers, rows, cols, stride, scratch.data());
    data = scratch.data();
  }
};

/// The rounded numbers of an operand as fp32, without gaps.
Buffer<float> rounded_fp32(const std::uint16_t* bits, const float* numbers, std::int64_t rows,
                           std::int64_t cols, std::int64_t stride) {
  Buffer<float> result(cpu_device(), rows, cols);
  if (bits != nullptr)
    convert_from_bf16(bits, rows, cols, stride, result.data());
  else
    round_to_bf16(numbers, rows, cols, stride, result.data());
  return result;
}

/// At most kLongestBf16Sum terms; what has to be rounded has at most kScratchElements elements.
void gemm_bf16_block(const GemmArgs& args) {
  const std::int64_t a_rows = args.trans_a ? args.k : args.m,
                     a_cols = args.trans_a ? args.m : args.k;
  const std::int64_t b_rows = args.trans_b ? args.n : args.k,
                     b_cols = args.trans_b ? args.k : args.n;
  if (args.m <= kFewestRows && !args.trans_a && args.trans_b) {
    const Buffer<float> a = rounded_fp32(args.a_bf16, args.a, a_rows, a_cols, args.lda);
    const Rounded b(args.b_bf16, args.b, b_rows, b_cols, args.ldb);
    GemmArgs rounded = args;
    rounded.b_bf16 = b.data, rounded.ldb = args.b_bf16 != nullptr ? args.ldb : b_cols;
    return gemm_bf16_few_rows(rounded, a.data());
  }
  if (uses_amx() && args.m >= kFewestAmxRows) {
    const Rounded a(args.a_bf16, args.a, a_rows, a_cols, args.lda);
    const Rounded b(args.b_bf16, args.b, b_rows, b_cols, args.ldb);
    GemmArgs rounded = args;
    rounded.a_bf16 = a.data, rounded.lda = args.a_bf16 != nullptr ? args.lda : a_cols;
    rounded.b_bf16 = b.data, rounded.ldb = args.b_bf16 != nullptr ? args.ldb : b_cols;
    return gemm_amx(rounded);
  }
  if (const auto product = compiled_product(args)) {
    const Rounded a(args.a_bf16, args.a, a_rows, a_cols, args.lda);
    const Rounded b(args.b_bf16, args.b, b_rows, b_cols, args.ldb);
    return execute(*product, args, a.data, b.data);
  }
  // The same meaning on every CPU: products of bfloat16 numbers are exact in fp32.
  const Buffer<float> a = rounded_fp32(args.a_bf16, args.a, a_rows, a_cols, args.lda);
  const Buffer<float> b = rounded_fp32(args.b_bf16, args.b, b_rows, b_cols, args.ldb);
  GemmArgs rounded = args;
  rounded.a = a.data(), rounded.lda = a_cols;
  rounded.b = b.data(), rounded.ldb = b_cols;
  gemm_fp32(rounded);
}

/// Length of equal blocks of at most `largest`, full cache lines each.
std::int64_t block_length(std::int64_t total, std::int64_t largest) {
  constexpr std::int64_t kUnit = 64;
  const std::int64_t blocks = (total + largest - 1) / largest;
  return ((total + blocks - 1) / blocks + kUnit - 1) / kUnit * kUnit;
}

/// An operand is where it is rounded already, or else where it is not.
void advance(const std::uint16_t*& bits, const float*& numbers, std::int64_t elements) {
  if (bits != nullptr)
    bits += elements;
  else
    numbers += elements;
}

/// In blocks, so that the rounded operands stay small however long the sequence and large the
/// vocabulary.
void gemm_bf16(const GemmArgs& args) {
  const std::int64_t length_k = block_length(args.k, kLongestBf16Sum);
  const bool reads_once = args.m < kFewRows && args.b_bf16 == nullptr;
  const std::int64_t elements = reads_once ? kCachedElements : kScratchElements;
  const std::int64_t length_m =
      block_length(args.m, std::max<std::int64_t>(elements / length_k, 1));
  const std::int64_t length_n =
      block_length(args.n, std::max<std::int64_t>(elements / length_k, 1));
  for (std::int64_t i = 0; i < args.m; i += length_m)
    for (std::int64_t j = 0; j < args.n; j += length_n)
      for (std::int64_t p = 0; p < args.k; p += length_k) {
        GemmArgs block = args;
        block.m = std::min(length_m, args.m - i);
        block.n = std::min(length_n, args.n - j);
        block.k = std::min(length_k, args.k - p);
        const std::int64_t from_a = args.trans_a ? p * args.lda + i : i * args.lda + p;
        const std::int64_t from_b = args.trans_b ? j * args.ldb + p : p * args.ldb + j;
        advance(block.a_bf16, block.a, from_a);
        advance(block.b_bf16, block.b, from_b);
        block.c += i * args.ldc + j;
        block.bias = args.bias != nullptr && p == 0 ? args.bias + j : nullptr;
        block.accumulate = args.accumulate || p > 0;
        gemm_bf16_block(block);
      }
}

}  // namespace

void gemm(const GemmArgs& args) {
  if (args.m == 0 || args.n == 0) return;
  if (args.k == 0)
    start_from_bias(args);
  else if (args.bf16_operands)
    gemm_bf16(args);
  else
    gemm_fp32(args);
}

void gemm_to_bf16(const GemmToBf16Args& args) {
  const GemmArgs& product = args.product;
  if (uses_amx() && product.a_bf16 != nullptr && product.b_bf16 != nullptr && !product.trans_a &&
      product.m >= kFewestAmxRows && product.n > 0 && product.k > 0 && product.k <= kLongestAmxSum)
    return gemm_amx(product, args.c_bf16);
  gemm(product);
  convert_to_bf16(product.c, product.m, product.n, product.n, args.c_bf16);
}

}  // namespace longspan::model::cpu
