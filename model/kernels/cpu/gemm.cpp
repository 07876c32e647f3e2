#include "model/kernels/cpu/gemm.hpp"

#include <dnnl.h>
#include <dnnl.hpp>
#include <omp.h>

#include <compare>
#include <list>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>

#include "model/kernels/cpu/bf16_operand.hpp"
#include "parallel/device.hpp"
#include "parallel/error.hpp"

namespace longspan::model::cpu {
namespace {

using dnnl::memory;

/// One bfloat16 product sums at most so many terms before it is added to c. Measured at [1024, 50304] x [50304, 768]:
/// oneDNN loses half of its speed on one long sum, and the rounded operands would take as many times the memory.
constexpr std::int64_t kLongestBf16Sum = 4096;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// Everything a compiled product depends on; pointers do not matter. Operands are rounded into dense matrices.
struct Key {
  std::int64_t m, n, k, ldc;
  bool trans_a, trans_b, accumulate, bias;
  int threads;  ///< oneDNN fixes the split over threads when it compiles
  auto operator<=>(const Key&) const = default;
};

/// A compiled product of bfloat16 matrices; `pack_b` (if any) brings b into the layout the product reads.
struct Product {
  memory::desc a, b, packed_b, c, bias, scratchpad;
  dnnl::matmul product;
  dnnl::reorder pack_b;
};

memory::desc matrix(std::int64_t rows, std::int64_t cols, bool transposed, std::int64_t stride, memory::data_type type) {
  return {{rows, cols}, type, transposed ? memory::dims{1, stride} : memory::dims{stride, 1}};
}

/// The user's scratch: oneDNN's own belongs to the thread that compiled, and several threads may call.
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
  // Each set of instructions is a set of bits. Without these oneDNN emulates, slower than its fp32 product.
  if ((dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) != dnnl_cpu_isa_avx512_core_bf16) return std::nullopt;
  Product p;
  p.a = matrix(key.m, key.k, key.trans_a, key.trans_a ? key.m : key.k, memory::data_type::bf16);
  p.b = matrix(key.k, key.n, key.trans_b, key.trans_b ? key.k : key.n, memory::data_type::bf16);
  p.c = matrix(key.m, key.n, false, key.ldc, memory::data_type::f32);
  if (key.bias) p.bias = {{1, key.n}, memory::data_type::f32, memory::format_tag::ab};
  // A transposed a is copied inside the product, again for every block of b: with b packed it costs a quarter less.
  const bool pack = key.trans_a;
  const memory::desc b = pack ? memory::desc({key.k, key.n}, memory::data_type::bf16, memory::format_tag::any) : p.b;
  try {
    const auto description = key.bias ? dnnl::matmul::desc(p.a, b, p.bias, p.c) : dnnl::matmul::desc(p.a, b, p.c);
    const dnnl::matmul::primitive_desc compiled(description, attributes(key.accumulate), engine());
    if (std::string_view(compiled.impl_info_str()).starts_with("ref")) return std::nullopt;
    p.packed_b = compiled.weights_desc();
    p.scratchpad = compiled.scratchpad_desc();
    p.product = dnnl::matmul(compiled);
    if (p.packed_b != p.b) {
      const dnnl::reorder::primitive_desc packing(engine(), p.b, engine(), p.packed_b, attributes(false));
      if (packing.scratchpad_desc().get_size() > p.scratchpad.get_size()) p.scratchpad = packing.scratchpad_desc();
      p.pack_b = dnnl::reorder(packing);
    }
    return p;
  } catch (const dnnl::error&) {
    return std::nullopt;
  }
}

/// The most recently used products. A training step needs some tens; generation adds some per prompt length.
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
  return cache.get({args.m, args.n, args.k, args.ldc, args.trans_a, args.trans_b, args.accumulate, args.bias != nullptr,
                    omp_get_max_threads()});
}

memory bind(const memory::desc& desc, const void* data) {
  return memory(desc, engine(), const_cast<void*>(data));  // oneDNN knows no const
}

void execute(const Product& p, const GemmArgs& args, const std::uint16_t* a, const std::uint16_t* b) {
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
  constexpr std::int64_t kParallelElements = 1 << 15;  // below, starting threads costs more than they save
#pragma omp parallel for schedule(static) if (args.m * args.n >= kParallelElements)
  for (std::int64_t i = 0; i < args.m; ++i) {
    float* c = args.c + i * args.ldc;
    for (std::int64_t j = 0; j < args.n; ++j)
      c[j] = (args.accumulate ? c[j] : 0.0f) + (args.bias != nullptr ? args.bias[j] : 0.0f);
  }
}

/// dnnl_sgemm and not a matmul primitive: as fast or faster for every product of a training step, and twice as fast
/// where the primitive is worst ([3072, 768] += [tokens, 3072]^T x [tokens, 768]), even with the bias written first.
void gemm_fp32(const GemmArgs& args) {
  if (args.bias != nullptr) start_from_bias(args);
  const float beta = args.accumulate || args.bias != nullptr ? 1.0f : 0.0f;
  const dnnl::status status =
      dnnl::sgemm(args.trans_a ? 'T' : 'N', args.trans_b ? 'T' : 'N', args.m, args.n, args.k, 1.0f, args.a, args.lda,
                  args.b, args.ldb, beta, args.c, args.ldc);
  if (status != dnnl::status::success)
    fail("oneDNN cannot multiply [{}, {}] by [{}, {}] (status {}): the memory may be used up, try shorter sequences",
         args.m, args.k, args.k, args.n, static_cast<int>(status));
}

/// At most kLongestBf16Sum terms.
void gemm_bf16_block(const GemmArgs& args) {
  const std::int64_t a_rows = args.trans_a ? args.k : args.m, a_cols = args.trans_a ? args.m : args.k;
  const std::int64_t b_rows = args.trans_b ? args.n : args.k, b_cols = args.trans_b ? args.k : args.n;
  if (const auto product = compiled_product(args)) {
    const Buffer<std::uint16_t> a(cpu_device(), a_rows, a_cols), b(cpu_device(), b_rows, b_cols);
    convert_to_bf16(args.a, a_rows, a_cols, args.lda, a.data());
    convert_to_bf16(args.b, b_rows, b_cols, args.ldb, b.data());
    return execute(*product, args, a.data(), b.data());
  }
  // The same meaning on every CPU: products of bfloat16 numbers are exact in fp32.
  const Buffer<float> a(cpu_device(), a_rows, a_cols), b(cpu_device(), b_rows, b_cols);
  round_to_bf16(args.a, a_rows, a_cols, args.lda, a.data());
  round_to_bf16(args.b, b_rows, b_cols, args.ldb, b.data());
  GemmArgs rounded = args;
  rounded.a = a.data(), rounded.lda = a_cols;
  rounded.b = b.data(), rounded.ldb = b_cols;
  gemm_fp32(rounded);
}

void gemm_bf16(const GemmArgs& args) {
  const std::int64_t blocks = (args.k + kLongestBf16Sum - 1) / kLongestBf16Sum;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t first = part_begin(args.k, block, blocks);
    GemmArgs part = args;
    part.k = part_begin(args.k, block + 1, blocks) - first;
    part.a += args.trans_a ? first * args.lda : first;
    part.b += args.trans_b ? first : first * args.ldb;
    if (block > 0) part.accumulate = true, part.bias = nullptr;
    gemm_bf16_block(part);
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

}  // namespace longspan::model::cpu
