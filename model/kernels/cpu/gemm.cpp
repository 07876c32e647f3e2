#include "model/kernels/cpu/gemm.hpp"

#include <omp.h>

#include <algorithm>
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

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// Everything a compiled product depends on; pointers do not matter.
struct Key {
  std::int64_t m, n, k, lda, ldb, ldc;
  bool trans_a, trans_b, accumulate, bias, bf16;
  int threads;  ///< oneDNN fixes the split over threads when it compiles
  auto operator<=>(const Key&) const = default;
};

/// A compiled product and the scratch bytes it wants at every call.
struct Product {
  dnnl::matmul primitive;
  memory::desc a, b, c, bias, scratchpad;
};

memory::desc matrix(std::int64_t rows, std::int64_t cols, bool transposed, std::int64_t stride,
                    memory::data_type type) {
  return {{rows, cols}, type, transposed ? memory::dims{1, stride} : memory::dims{stride, 1}};
}

/// Nothing if oneDNN has only its slow reference code for this product (or none at all).
std::optional<Product> compile(const Key& key) {
  const auto operand = key.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  Product product;
  product.a = matrix(key.m, key.k, key.trans_a, key.lda, operand);
  product.b = matrix(key.k, key.n, key.trans_b, key.ldb, operand);
  product.c = matrix(key.m, key.n, false, key.ldc, memory::data_type::f32);
  if (key.bias) product.bias = {{1, key.n}, memory::data_type::f32, memory::format_tag::ab};
  dnnl::primitive_attr attributes;
  // oneDNN's own scratch belongs to the thread that compiled; several threads may call.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (key.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  try {
    const dnnl::matmul::desc description =
        key.bias ? dnnl::matmul::desc(product.a, product.b, product.bias, product.c)
                 : dnnl::matmul::desc(product.a, product.b, product.c);
    const dnnl::matmul::primitive_desc compiled(description, attributes, engine());
    if (key.bf16 && std::string_view(compiled.impl_info_str()).starts_with("ref"))
      return std::nullopt;
    product.scratchpad = compiled.scratchpad_desc();
    product.primitive = dnnl::matmul(compiled);
    return product;
  } catch (const dnnl::error& error) {
    if (key.bf16) return std::nullopt;
    fail("oneDNN cannot multiply [{}, {}] by [{}, {}]: {}", key.m, key.k, key.k, key.n,
         error.what());
  }
}

/// The most recently used products. A training step needs some tens; generation adds one per prompt
/// length.
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

std::optional<Product> compiled_product(const GemmArgs& args, std::int64_t lda, std::int64_t ldb,
                                        bool bf16) {
  static ProductCache& cache = *new ProductCache;  // never destroyed: oneDNN may be gone by then
  return cache.get({args.m, args.n, args.k, lda, ldb, args.ldc, args.trans_a, args.trans_b,
                    args.accumulate, args.bias != nullptr, bf16, omp_get_max_threads()});
}

void execute(const Product& product, const GemmArgs& args, const void* a, const void* b) {
  const Buffer<std::byte> scratch(cpu_device(),
                                  static_cast<std::int64_t>(product.scratchpad.get_size()));
  auto bind = [](const memory::desc& desc, const void* data) {
    return memory(desc, engine(), const_cast<void*>(data));  // oneDNN knows no const
  };
  std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, bind(product.a, a)},
                                               {DNNL_ARG_WEIGHTS, bind(product.b, b)},
                                               {DNNL_ARG_DST, bind(product.c, args.c)}};
  if (args.bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, bind(product.bias, args.bias));
  if (!scratch.empty())
    arguments.emplace(DNNL_ARG_SCRATCHPAD, bind(product.scratchpad, scratch.data()));
  dnnl::stream stream(engine());
  product.primitive.execute(stream, arguments);
  stream.wait();
}

/// k = 0: a product without terms.
void gemm_without_terms(const GemmArgs& args) {
  for (std::int64_t i = 0; i < args.m; ++i)
    for (std::int64_t j = 0; j < args.n; ++j) {
      float& c = args.c[i * args.ldc + j];
      c = (args.accumulate ? c : 0.0f) + (args.bias != nullptr ? args.bias[j] : 0.0f);
    }
}

void gemm_fp32(const GemmArgs& args) {
  execute(*compiled_product(args, args.lda, args.ldb, false), args, args.a, args.b);
}

void gemm_bf16(const GemmArgs& args) {
  const std::int64_t a_rows = args.trans_a ? args.k : args.m,
                     a_cols = args.trans_a ? args.m : args.k;
  const std::int64_t b_rows = args.trans_b ? args.n : args.k,
                     b_cols = args.trans_b ? args.k : args.n;
  if (const auto product = compiled_product(args, a_cols, b_cols, true)) {
    const Buffer<std::uint16_t> a(cpu_device(), a_rows, a_cols), b(cpu_device(), b_rows, b_cols);
    convert_to_bf16(args.a, a_rows, a_cols, args.lda, a.data());
    convert_to_bf16(args.b, b_rows, b_cols, args.ldb, b.data());
    return execute(*product, args, a.data(), b.data());
  }
  const Buffer<float> a(cpu_device(), a_rows, a_cols), b(cpu_device(), b_rows, b_cols);
  round_to_bf16(args.a, a_rows, a_cols, args.lda, a.data());
  round_to_bf16(args.b, b_rows, b_cols, args.ldb, b.data());
  GemmArgs rounded = args;
  rounded.a = a.data(), rounded.lda = a_cols;
  rounded.b = b.data(), rounded.ldb = b_cols;
  gemm_fp32(rounded);
}

}  // namespace

void gemm(const GemmArgs& args) {
  if (args.m == 0 || args.n == 0) return;
  if (args.k == 0) return gemm_without_terms(args);
  if (args.bf16_operands)
    gemm_bf16(args);
  else
    gemm_fp32(args);
}

}  // namespace longspan::model::cpu
