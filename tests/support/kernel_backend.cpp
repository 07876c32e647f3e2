#include "support/kernel_backend.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "launcher/gpu.hpp"
#include "model/kernels/cpu/instruction_set.hpp"
#include "parallel/error.hpp"

namespace longspan::testing_support {
namespace {

using namespace model;

constexpr std::size_t kZone = 256;
constexpr unsigned char kZoneByte = 0xFF;  // NaN, if somebody reads it

/// Elements from the first to the last of a matrix whose rows have gaps.
std::int64_t extent(std::int64_t rows, std::int64_t cols, std::int64_t row) {
  return rows == 0 ? 0 : (rows - 1) * row + cols;
}

std::int64_t rows_named(const std::int32_t* numbers, std::int64_t count) {
  return count == 0 ? 0
                    : std::max<std::int64_t>(0, *std::max_element(numbers, numbers + count) + 1);
}

Dropout placed(const Dropout& dropout, std::int64_t rows, HostCall& call) {
  Dropout result = dropout;
  if (dropout.tokens > 0) {
    result.sequences = call.in(dropout.sequences, (rows + dropout.tokens - 1) / dropout.tokens);
    result.positions = call.in(dropout.positions, dropout.tokens);
  }
  return result;
}

}  // namespace

void* HostCall::place(void* host, std::int64_t count, std::size_t size, bool written) {
  if (host == nullptr || backend_.device.host_accessible()) return host;
  const std::size_t bytes = static_cast<std::size_t>(count) * size;
  for (Array& array : arrays_) {
    if (array.host != host) continue;
    EXPECT_EQ(array.bytes, bytes) << "one array, two sizes: the helper does not know this call";
    array.written = array.written || written;
    return array.device.data() + array.offset;
  }
  Array array{host, bytes, kZone + static_cast<std::size_t>(shift_) * size, written, {}};
  std::vector<unsigned char> image(array.offset + bytes + kZone, kZoneByte);
  if (bytes > 0) std::memcpy(image.data() + array.offset, host, bytes);
  array.device = Buffer<std::byte>(backend_.device, static_cast<std::int64_t>(image.size()));
  backend_.device.copy(array.device.data(), image.data(), image.size(), backend_.stream);
  arrays_.push_back(std::move(array));
  return arrays_.back().device.data() + arrays_.back().offset;
}

void HostCall::finish() {
  backend_.stream.synchronize();
  for (const Array& array : arrays_) {
    std::vector<unsigned char> image(static_cast<std::size_t>(array.device.size()));
    backend_.device.copy(image.data(), array.device.data(), image.size(), backend_.stream);
    const auto is_zone = [](unsigned char byte) { return byte == kZoneByte; };
    const auto first = image.begin() + static_cast<std::ptrdiff_t>(array.offset);
    const auto last = first + static_cast<std::ptrdiff_t>(array.bytes);
    EXPECT_TRUE(std::all_of(image.begin(), first, is_zone)) << "written before an array";
    EXPECT_TRUE(std::all_of(last, image.end(), is_zone)) << "written behind an array";
    if (array.written)
      std::memcpy(array.host, image.data() + array.offset, array.bytes);
    else
      EXPECT_EQ(std::memcmp(array.host, image.data() + array.offset, array.bytes), 0)
          << "an input was written to";
  }
}

namespace {

GemmArgs placed(const GemmArgs& args, HostCall& call) {
  GemmArgs a = args;
  const std::int64_t a_extent = extent(args.trans_a ? args.k : args.m,
                                       args.trans_a ? args.m : args.k, args.lda),
                     b_extent = extent(args.trans_b ? args.n : args.k,
                                       args.trans_b ? args.k : args.n, args.ldb);
  a.a = call.in(args.a, a_extent);
  a.b = call.in(args.b, b_extent);
  a.a_bf16 = call.in(args.a_bf16, a_extent);
  a.b_bf16 = call.in(args.b_bf16, b_extent);
  a.bias = call.in(args.bias, args.n);
  a.c = call.inout(args.c, extent(args.m, args.n, args.ldc));
  return a;
}

}  // namespace

void HostKernels::gemm(const GemmArgs& args) {
  HostCall call(backend_, shift_);
  backend_.kernels.gemm(placed(args, call), backend_.stream);
  call.finish();
}

void HostKernels::gemm_to_bf16(const GemmToBf16Args& args) {
  HostCall call(backend_, shift_);
  backend_.kernels.gemm_to_bf16(
      {placed(args.product, call), call.inout(args.c_bf16, args.product.m * args.product.n)},
      backend_.stream);
  call.finish();
}

void HostKernels::gemm_gelu_forward(const GemmGeluArgs& args) {
  HostCall call(backend_, shift_);
  const std::int64_t count = args.product.m * args.product.n;
  backend_.kernels.gemm_gelu_forward(
      {placed(args.product, call), call.inout(args.y, count), call.inout(args.hidden_bf16, count),
       call.inout(args.y_bf16, count)},
      backend_.stream);
  call.finish();
}

void HostKernels::gemm_gelu_backward(const GemmGeluBackwardArgs& args) {
  HostCall call(backend_, shift_);
  backend_.kernels.gemm_gelu_backward(
      {placed(args.product, call), call.in(args.hidden, args.product.m * args.product.n),
       call.inout(args.dbias, args.product.n)},
      backend_.stream);
  call.finish();
}

void HostKernels::norm_forward(const NormForwardArgs& args) {
  HostCall call(backend_, shift_);
  NormForwardArgs a = args;
  const std::int64_t count = args.rows * args.width;
  a.x = call.in(args.x, count), a.y = call.inout(args.y, count);
  a.weight = call.in(args.weight, args.width), a.bias = call.in(args.bias, args.width);
  a.mean = call.inout(args.mean, args.rows), a.rstd = call.inout(args.rstd, args.rows);
  backend_.kernels.norm_forward(a, backend_.stream);
  call.finish();
}

void HostKernels::residual_norm_forward(const ResidualNormArgs& args) {
  HostCall call(backend_, shift_);
  ResidualNormArgs a = args;
  const std::int64_t count = args.norm.rows * args.norm.width;
  ResidualForwardArgs& r = a.residual;
  r.x = call.in(r.x, count), r.r = call.in(r.r, count), r.y = call.inout(r.y, count);
  r.dropout = placed(r.dropout, r.rows, call);
  NormForwardArgs& n = a.norm;
  n.x = r.y, n.y = call.inout(n.y, count);
  n.weight = call.in(n.weight, n.width), n.bias = call.in(n.bias, n.width);
  n.mean = call.inout(n.mean, n.rows), n.rstd = call.inout(n.rstd, n.rows);
  backend_.kernels.residual_norm_forward(a, backend_.stream);
  call.finish();
}

void HostKernels::norm_backward(const NormBackwardArgs& args) {
  HostCall call(backend_, shift_);
  NormBackwardArgs a = args;
  const std::int64_t count = args.rows * args.width;
  a.dy = call.in(args.dy, count), a.x = call.in(args.x, count), a.dx = call.inout(args.dx, count);
  a.weight = call.in(args.weight, args.width);
  a.mean = call.in(args.mean, args.rows), a.rstd = call.in(args.rstd, args.rows);
  a.dweight = call.inout(args.dweight, args.width), a.dbias = call.inout(args.dbias, args.width);
  backend_.kernels.norm_backward(a, backend_.stream);
  call.finish();
}

void HostKernels::gelu_forward(const GeluForwardArgs& args) {
  HostCall call(backend_, shift_);
  GeluForwardArgs a = args;
  a.x = call.in(args.x, args.count), a.y = call.inout(args.y, args.count);
  backend_.kernels.gelu_forward(a, backend_.stream);
  call.finish();
}

void HostKernels::gelu_bf16_forward(const GeluBf16ForwardArgs& args) {
  HostCall call(backend_, shift_);
  const std::int64_t count = args.count;
  backend_.kernels.gelu_bf16_forward(
      {count, call.inout(args.x, count), call.inout(args.y, count),
       call.inout(args.hidden_bf16, count), call.inout(args.y_bf16, count)},
      backend_.stream);
  call.finish();
}

void HostKernels::gelu_backward(const GeluBackwardArgs& args) {
  HostCall call(backend_, shift_);
  GeluBackwardArgs a = args;
  a.x = call.in(args.x, args.count), a.dy = call.in(args.dy, args.count);
  a.dx = call.inout(args.dx, args.count);
  backend_.kernels.gelu_backward(a, backend_.stream);
  call.finish();
}

void HostKernels::swiglu_forward(const SwigluForwardArgs& args) {
  HostCall call(backend_, shift_);
  SwigluForwardArgs a = args;
  a.gate_up = call.in(args.gate_up, args.rows * 2 * args.width);
  a.y = call.inout(args.y, args.rows * args.width);
  backend_.kernels.swiglu_forward(a, backend_.stream);
  call.finish();
}

void HostKernels::swiglu_backward(const SwigluBackwardArgs& args) {
  HostCall call(backend_, shift_);
  SwigluBackwardArgs a = args;
  a.gate_up = call.in(args.gate_up, args.rows * 2 * args.width);
  a.dy = call.in(args.dy, args.rows * args.width);
  a.dgate_up = call.inout(args.dgate_up, args.rows * 2 * args.width);
  backend_.kernels.swiglu_backward(a, backend_.stream);
  call.finish();
}

void HostKernels::swiglu_bf16_forward(const SwigluBf16ForwardArgs& args) {
  HostCall call(backend_, shift_);
  SwigluBf16ForwardArgs a = args;
  const std::int64_t count = args.rows * args.width;
  a.gate_up = call.in(args.gate_up, 2 * count), a.y = call.inout(args.y, count);
  a.wide = call.inout(args.wide, 2 * count), a.wide_y = call.inout(args.wide_y, count);
  backend_.kernels.swiglu_bf16_forward(a, backend_.stream);
  call.finish();
}

void HostKernels::swiglu_bf16_backward(const SwigluBf16BackwardArgs& args) {
  HostCall call(backend_, shift_);
  SwigluBf16BackwardArgs a = args;
  const std::int64_t count = args.rows * args.width;
  a.gate_up = call.inout(args.gate_up, 2 * count), a.dy = call.in(args.dy, count);
  a.wide = call.inout(args.wide, 2 * count);
  backend_.kernels.swiglu_bf16_backward(a, backend_.stream);
  call.finish();
}

void HostKernels::residual_forward(const ResidualForwardArgs& args) {
  HostCall call(backend_, shift_);
  ResidualForwardArgs a = args;
  const std::int64_t count = args.rows * args.width;
  a.x = call.in(args.x, count), a.r = call.in(args.r, count), a.y = call.inout(args.y, count);
  a.dropout = placed(args.dropout, args.rows, call);
  backend_.kernels.residual_forward(a, backend_.stream);
  call.finish();
}

void HostKernels::residual_backward(const ResidualBackwardArgs& args) {
  HostCall call(backend_, shift_);
  ResidualBackwardArgs a = args;
  const std::int64_t count = args.rows * args.width;
  a.dy = call.in(args.dy, count), a.dr = call.inout(args.dr, count);
  a.dropout = placed(args.dropout, args.rows, call);
  backend_.kernels.residual_backward(a, backend_.stream);
  call.finish();
}

void HostKernels::rotary(const RotaryArgs& args) {
  HostCall call(backend_, shift_);
  RotaryArgs a = args;
  a.x = call.inout(args.x, extent(args.rows, args.heads * args.head_size, args.row_stride));
  a.positions = call.in(args.positions, args.tokens);
  a.cos_sin = call.in(args.cos_sin, rows_named(args.positions, args.tokens) * args.head_size);
  backend_.kernels.rotary(a, backend_.stream);
  call.finish();
}

void HostKernels::embedding_forward(const EmbeddingForwardArgs& args) {
  HostCall call(backend_, shift_);
  EmbeddingForwardArgs a = args;
  a.ids = call.in(args.ids, args.rows);
  a.table = call.in(args.table, rows_named(args.ids, args.rows) * args.width);
  if (args.position_table != nullptr)
    a.position_table =
        call.in(args.position_table, rows_named(args.positions, args.tokens) * args.width);
  a.positions = call.in(args.positions, args.tokens);
  a.y = call.inout(args.y, args.rows * args.width);
  backend_.kernels.embedding_forward(a, backend_.stream);
  call.finish();
}

void HostKernels::embedding_backward(const EmbeddingBackwardArgs& args) {
  HostCall call(backend_, shift_);
  EmbeddingBackwardArgs a = args;
  a.ids = call.in(args.ids, args.rows);
  a.dy = call.in(args.dy, args.rows * args.width);
  a.dtable = call.inout(args.dtable, rows_named(args.ids, args.rows) * args.width);
  if (args.dposition_table != nullptr)
    a.dposition_table =
        call.inout(args.dposition_table, rows_named(args.positions, args.tokens) * args.width);
  a.positions = call.in(args.positions, args.tokens);
  backend_.kernels.embedding_backward(a, backend_.stream);
  call.finish();
}

void HostKernels::cross_entropy(const CrossEntropyArgs& args) {
  HostCall call(backend_, shift_);
  CrossEntropyArgs a = args;
  a.logits = call.inout(args.logits, args.rows * args.row_stride);
  a.targets = call.in(args.targets, args.rows);
  a.losses = call.inout(args.losses, args.rows);
  a.statistics = call.inout(args.statistics, 3 * args.rows);
  backend_.kernels.cross_entropy(a, backend_.stream);
  call.finish();
}

void HostKernels::adamw(const AdamwArgs& args) {
  HostCall call(backend_, shift_);
  AdamwArgs a = args;
  a.weight = call.inout(args.weight, args.count), a.gradient = call.in(args.gradient, args.count);
  a.exp_avg = call.inout(args.exp_avg, args.count);
  a.exp_avg_sq = call.inout(args.exp_avg_sq, args.count);
  backend_.kernels.adamw(a, backend_.stream);
  call.finish();
}

void HostKernels::add(std::int64_t count, const float* x, float* y) {
  HostCall call(backend_, shift_);
  backend_.kernels.add(count, call.in(x, count), call.inout(y, count), backend_.stream);
  call.finish();
}

void HostKernels::add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                           float* y, std::int64_t y_row) {
  HostCall call(backend_, shift_);
  backend_.kernels.add_rows(rows, cols, call.in(x, extent(rows, cols, x_row)), x_row,
                            call.inout(y, extent(rows, cols, y_row)), y_row, backend_.stream);
  call.finish();
}

void HostKernels::add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y) {
  HostCall call(backend_, shift_);
  backend_.kernels.add_column_sums(rows, cols, call.in(x, rows * cols), call.inout(y, cols),
                                   backend_.stream);
  call.finish();
}

double HostKernels::sum_of_squares(std::int64_t count, const float* x) {
  HostCall call(backend_, shift_);
  const double sum = backend_.kernels.sum_of_squares(count, call.in(x, count), backend_.stream);
  call.finish();
  return sum;
}

void HostKernels::round_to_bf16(std::int64_t count, float* x) {
  HostCall call(backend_, shift_);
  backend_.kernels.round_to_bf16(count, call.inout(x, count), backend_.stream);
  call.finish();
}

void HostKernels::to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                          std::uint16_t* y) {
  HostCall call(backend_, shift_);
  backend_.kernels.to_bf16(rows, cols, call.in(x, extent(rows, cols, x_row)), x_row,
                           call.inout(y, rows * cols), backend_.stream);
  call.finish();
}

void HostKernels::from_bf16(std::int64_t count, const std::uint16_t* x, float* y) {
  HostCall call(backend_, shift_);
  backend_.kernels.from_bf16(count, call.in(x, count), call.inout(y, count), backend_.stream);
  call.finish();
}

namespace {

constexpr const char* kNoGpu = "no GPU here: ";

/// Stays open until the process ends, as the plug-in does.
GpuBackend& device_backend(bool emulated) {
  static GpuBackend* const backend = [&] {
    if (emulated)
      ::setenv("LONGSPAN_CUDA_PLUGIN", LONGSPAN_BINARY_DIR "/liblongspan_cuda_emulated.so", 1);
    return launcher::open_gpu_plugin().open({}).release();
  }();
  return *backend;
}

}  // namespace

std::vector<std::string> kernel_backends(bool every_set) {
  const char* device = std::getenv("LONGSPAN_TEST_DEVICE");
  if (device != nullptr && std::string_view(device) == "cuda") return {"cuda", "cuda_shifted"};
  std::vector<std::string> names = cpu::instruction_sets();
  if (!every_set) names.erase(names.begin() + 1, names.end());
#if !defined(__SANITIZE_ADDRESS__)  // which does not follow the emulator's fibers
  names.insert(names.end(), {"emulated", "emulated_shifted"});
#endif
  return names;
}

std::optional<model::Backend> cuda_backend(std::string& why) {
  const char* device = std::getenv("LONGSPAN_TEST_DEVICE");
  try {
    return device_backend(device == nullptr || std::string_view(device) != "cuda").backend();
  } catch (const Error& error) {
    why = error.what();
    return std::nullopt;
  }
}

void EveryBackend::SetUp() {
  const std::string& name = GetParam();
  const std::int64_t shift = name.ends_with("_shifted") ? 1 : 0;
  if (name.starts_with("emulated")) {
    kernels_ = std::make_unique<HostKernels>(device_backend(true).backend(), shift);
  } else if (name.starts_with("cuda")) {
    try {
      kernels_ = std::make_unique<HostKernels>(device_backend(false).backend(), shift);
    } catch (const Error& error) {
      GTEST_SKIP() << kNoGpu << error.what();
    }
  } else {
    cpu::use_instruction_set(name);
    kernels_ = std::make_unique<HostKernels>(cpu_backend(), 0);
  }
}

}  // namespace longspan::testing_support
