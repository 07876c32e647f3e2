// How fast the GPU's operations are: matrix products and attention in TFLOP/s (model FLOPs: causal
// pairs counted once, attention 4 forward and 8 backward per pair and channel; also with the 10
// that a backward without stored scores computes), the memory-bound ones as a share of the copy
// bandwidth measured here. With LONGSPAN_CUDA_PLUGIN another plug-in.
//   --tiny           small shapes, one run of each
//   --only PART      products, attention or memory
//   --tokens N       attention of so many tokens alone
//   --own            own kernels where a library would serve (as run.deterministic = on)
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/gpu.hpp"
#include "model/kernels/kernels.hpp"
#include "parallel/error.hpp"

namespace {

using namespace longspan;
using namespace longspan::model;
using Clock = std::chrono::steady_clock;

struct Bench {
  Backend backend;
  bool tiny;
  double copy_bandwidth = 0;  ///< bytes per second, read and written

  /// Seconds of one call: the median of several rounds of enough calls, each round waited for.
  double seconds(const std::function<void()>& call) const {
    call();
    backend.stream.synchronize();
    const auto timed = [&](int calls) {
      const auto begin = Clock::now();
      for (int i = 0; i < calls; ++i) call();
      backend.stream.synchronize();
      return std::chrono::duration<double>(Clock::now() - begin).count() / calls;
    };
    if (tiny) return timed(1);
    const int calls = std::clamp(static_cast<int>(0.05 / timed(3)), 1, 1000);
    std::vector<double> rounds;
    for (int i = 0; i < 5; ++i) rounds.push_back(timed(calls));
    std::sort(rounds.begin(), rounds.end());
    return rounds[2];
  }

  Buffer<float> floats(std::int64_t count, float scale = 1.0f) const {
    std::vector<float> host(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i)
      host[static_cast<std::size_t>(i)] =
          scale * static_cast<float>((i * 2654435761LL >> 8) % 2001 - 1000) * 1e-3f;
    Buffer<float> there(backend.device, count);
    backend.device.copy(there.data(), host.data(), host.size() * 4, backend.stream);
    return there;
  }
  Buffer<std::int32_t> numbers(std::int64_t count) const {
    std::vector<std::int32_t> host(static_cast<std::size_t>(count));
    std::iota(host.begin(), host.end(), 0);
    Buffer<std::int32_t> there(backend.device, count);
    backend.device.copy(there.data(), host.data(), host.size() * 4, backend.stream);
    return there;
  }

  void flops_row(const std::string& what, double flops, double took) const {
    fmt::print("{:<44} {:>10.3f} ms {:>9.1f} TFLOP/s\n", what, 1e3 * took, flops / took * 1e-12);
  }
  void bytes_row(const std::string& what, double bytes, double took) const {
    fmt::print("{:<44} {:>10.3f} ms {:>9.1f} GB/s {:>6.1f} % of copy\n", what, 1e3 * took,
               bytes / took * 1e-9, 100 * bytes / took / copy_bandwidth);
  }
};

void copies(Bench& bench) {
  const std::int64_t count = bench.tiny ? 1 << 16 : 1 << 28;
  const Buffer<float> x = bench.floats(1 << 16);
  Buffer<float> from(bench.backend.device, count), to(bench.backend.device, count);
  bench.backend.device.fill_zero(from.data(), static_cast<std::size_t>(count) * 4,
                                 bench.backend.stream);
  const double took = bench.seconds([&] {
    bench.backend.device.copy(to.data(), from.data(), static_cast<std::size_t>(count) * 4,
                              bench.backend.stream);
  });
  bench.copy_bandwidth = 8.0 * static_cast<double>(count) / took;
  bench.bytes_row(fmt::format("copy of {} MiB", count >> 18), 8.0 * static_cast<double>(count),
                  took);
}

void products(const Bench& bench) {
  struct Shape {
    const char* what;
    std::int64_t m, n, k;
  };
  std::vector<Shape> shapes = {{"8192^3", 8192, 8192, 8192},
                               {"GPT-2 124M up", 32768, 3072, 768},
                               {"GPT-2 124M head", 8192, 50304, 768},
                               {"1B up", 16384, 8192, 2048},
                               {"8B up", 8192, 14336, 4096}};
  if (bench.tiny) shapes = {{"tiny", 64, 64, 64}};
  for (const Shape& s : shapes) {
    const Buffer<float> a = bench.floats(s.m * s.k), b = bench.floats(s.n * s.k);
    Buffer<float> c(bench.backend.device, s.m * s.n);
    Buffer<std::uint16_t> a16(bench.backend.device, s.m * s.k),
        b16(bench.backend.device, s.n * s.k);
    bench.backend.kernels.to_bf16(s.m, s.k, a.data(), s.k, a16.data(), bench.backend.stream);
    bench.backend.kernels.to_bf16(s.n, s.k, b.data(), s.k, b16.data(), bench.backend.stream);
    for (const bool bf16 : {true, false}) {
      GemmArgs args;
      args.m = s.m, args.n = s.n, args.k = s.k;
      args.a = a.data(), args.lda = s.k;
      args.b = b.data(), args.ldb = s.k, args.trans_b = true;
      args.c = c.data(), args.ldc = s.n;
      if (bf16) args.bf16_operands = true, args.a_bf16 = a16.data(), args.b_bf16 = b16.data();
      bench.flops_row(
          fmt::format("product {} {} ({} x {} x {})", s.what, bf16 ? "bf16" : "fp32", s.m, s.n,
                      s.k),
          2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k),
          bench.seconds([&] { bench.backend.kernels.gemm(args, bench.backend.stream); }));
    }
  }
}

/// The MLP's products with GELU as the backend does them, and as their parts.
void products_with_gelu(const Bench& bench) {
  struct Shape {
    const char* what;
    std::int64_t rows, width, hidden;
  };
  std::vector<Shape> shapes = {{"GPT-2 124M", 5461, 768, 3072}, {"GPT-2 1.5B", 2621, 1600, 6400}};
  if (bench.tiny) shapes = {{"tiny", 64, 64, 128}};
  Device& device = bench.backend.device;
  Kernels& kernels = bench.backend.kernels;
  Stream& stream = bench.backend.stream;
  for (const Shape& s : shapes) {
    const std::int64_t count = s.rows * s.hidden;
    const Buffer<float> x = bench.floats(s.rows * s.width), w = bench.floats(s.hidden * s.width),
                        bias = bench.floats(s.hidden), before = bench.floats(count);
    Buffer<std::uint16_t> x16(device, x.size()), w16(device, w.size()), hidden(device, count),
        y16(device, count);
    kernels.to_bf16(1, x.size(), x.data(), x.size(), x16.data(), stream);
    kernels.to_bf16(1, w.size(), w.data(), w.size(), w16.data(), stream);
    Buffer<float> c(device, count), y(device, count), dbias(device, s.hidden);
    device.fill_zero(dbias.data(), static_cast<std::size_t>(s.hidden) * 4, stream);
    GemmGeluArgs up;
    up.product.m = s.rows, up.product.n = up.product.ldc = s.hidden;
    up.product.k = up.product.lda = up.product.ldb = s.width;
    up.product.a_bf16 = x16.data(), up.product.b_bf16 = w16.data(), up.product.trans_b = true;
    up.product.bias = bias.data(), up.product.c = c.data(), up.product.bf16_operands = true;
    up.y = y.data(), up.hidden_bf16 = hidden.data(), up.y_bf16 = y16.data();
    GemmGeluBackwardArgs down{up.product, before.data(), dbias.data()};
    down.product.trans_b = false, down.product.ldb = s.hidden, down.product.bias = nullptr;
    const double flops = 2.0 * static_cast<double>(count) * static_cast<double>(s.width);
    const auto row = [&](const char* what, const std::function<void()>& call) {
      bench.flops_row(fmt::format("{} {} ({} x {} x {})", what, s.what, s.rows, s.hidden, s.width),
                      flops, bench.seconds(call));
    };
    row("GELU", [&] { kernels.gemm_gelu_forward(up, stream); });
    row("GELU in parts", [&] { kernels.Kernels::gemm_gelu_forward(up, stream); });
    row("GELU backward", [&] { kernels.gemm_gelu_backward(down, stream); });
    row("GELU backward in parts", [&] { kernels.Kernels::gemm_gelu_backward(down, stream); });
  }
}

void attention(const Bench& bench, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads,
               std::int64_t size) {
  const std::int64_t q_width = heads * size, kv_width = kv_heads * size;
  const Buffer<float> q = bench.floats(tokens * q_width), k = bench.floats(tokens * kv_width),
                      v = bench.floats(tokens * kv_width), dout = bench.floats(tokens * q_width);
  Device& device = bench.backend.device;
  Buffer<float> o(device, tokens * q_width), lse(device, heads * tokens),
      delta(device, heads * tokens), dq(device, tokens * q_width), dk(device, tokens * kv_width),
      dv(device, tokens * kv_width);
  for (Buffer<float>* gradient : {&dq, &dk, &dv})
    device.fill_zero(gradient->data(), static_cast<std::size_t>(gradient->size()) * 4,
                     bench.backend.stream);
  const Buffer<std::int32_t> positions = bench.numbers(tokens);
  AttentionShape shape;
  shape.batch = 1, shape.queries = shape.keys = tokens;
  shape.heads = heads, shape.kv_heads = kv_heads, shape.head_size = size;
  shape.query_positions = shape.key_positions = positions.data();
  shape.scale = 1.0f / std::sqrt(static_cast<float>(size));
  shape.bf16_operands = true;
  shape.query_runs.count = shape.key_runs.count = 1;
  shape.query_runs.run[0] = shape.key_runs.run[0] = {0, tokens};
  AttentionForwardArgs forward;
  forward.shape = shape;
  forward.q = q.data(), forward.k = k.data(), forward.v = v.data();
  forward.q_row = q_width, forward.kv_row = kv_width;
  forward.q_batch = tokens * q_width, forward.kv_batch = tokens * kv_width;
  forward.o = o.data(), forward.o_row = q_width, forward.o_batch = tokens * q_width;
  forward.lse = lse.data();
  AttentionDeltaArgs rows;
  rows.batch = 1, rows.queries = tokens, rows.heads = heads, rows.head_size = size;
  rows.o = o.data(), rows.o_row = q_width, rows.o_batch = tokens * q_width;
  rows.dout = dout.data(), rows.dout_row = q_width, rows.dout_batch = tokens * q_width;
  rows.delta = delta.data();
  AttentionBackwardArgs backward;
  backward.shape = shape;
  backward.q = q.data(), backward.k = k.data(), backward.v = v.data();
  backward.q_row = q_width, backward.kv_row = kv_width;
  backward.q_batch = tokens * q_width, backward.kv_batch = tokens * kv_width;
  backward.dout = dout.data(), backward.dout_row = q_width, backward.dout_batch = tokens * q_width;
  backward.lse = lse.data(), backward.delta = delta.data();
  backward.dq = dq.data(), backward.dq_row = q_width, backward.dq_batch = tokens * q_width;
  backward.dk = dk.data(), backward.dv = dv.data();
  backward.dkv_row = kv_width, backward.dkv_batch = tokens * kv_width;

  const double pairs = static_cast<double>(tokens) * static_cast<double>(tokens + 1) / 2;
  const double per_flop = pairs * static_cast<double>(q_width);
  Kernels& kernels = bench.backend.kernels;
  Stream& stream = bench.backend.stream;
  const std::string name =
      fmt::format("{} tokens, {}/{} heads of {}, causal bf16", tokens, heads, kv_heads, size);
  const double ahead = bench.seconds([&] { kernels.attention_forward(forward, stream); });
  bench.flops_row("attention forward " + name, 4 * per_flop, ahead);
  kernels.attention_delta(rows, stream);
  const double back = bench.seconds([&] { kernels.attention_backward(backward, stream); });
  bench.flops_row("attention backward (8 per pair) " + name, 8 * per_flop, back);
  bench.flops_row("attention backward (10 per pair) " + name, 10 * per_flop, back);
}

void memory_bound(const Bench& bench) {
  const std::int64_t rows = bench.tiny ? 64 : 32768, width = bench.tiny ? 64 : 4096;
  const std::int64_t count = rows * width;
  const double bytes = 4.0 * static_cast<double>(count);
  Device& device = bench.backend.device;
  Kernels& kernels = bench.backend.kernels;
  Stream& stream = bench.backend.stream;
  const Buffer<float> x = bench.floats(count), wide = bench.floats(2 * count);
  Buffer<float> y(device, count);
  device.fill_zero(y.data(), static_cast<std::size_t>(count) * 4, stream);
  const auto row = [&](const char* what, double moved, const std::function<void()>& call) {
    bench.bytes_row(fmt::format("{} [{}, {}]", what, rows, width), moved, bench.seconds(call));
  };
  row("add", 3 * bytes, [&] { kernels.add(count, x.data(), y.data(), stream); });
  row("gelu forward", 2 * bytes, [&] {
    kernels.gelu_forward({count, x.data(), y.data()}, stream);
  });
  row("swiglu forward", 3 * bytes, [&] {
    kernels.swiglu_forward({rows, width, wide.data(), y.data()}, stream);
  });
  row("residual forward", 3 * bytes, [&] {
    ResidualForwardArgs args;
    args.rows = rows, args.width = width;
    args.x = x.data(), args.r = wide.data(), args.y = y.data();
    kernels.residual_forward(args, stream);
  });
  const Buffer<float> weight = bench.floats(width);
  Buffer<float> rstd(device, rows);
  row("norm forward", 2 * bytes, [&] {
    NormForwardArgs args;
    args.rows = rows, args.width = width;
    args.x = x.data(), args.weight = weight.data(), args.y = y.data();
    args.rms = true, args.rstd = rstd.data();
    kernels.norm_forward(args, stream);
  });
  Buffer<float> sum(device, count);
  row("residual and norm forward", 4 * bytes, [&] {
    ResidualNormArgs args;
    args.residual.rows = args.norm.rows = rows, args.residual.width = args.norm.width = width;
    args.residual.x = x.data(), args.residual.r = wide.data(), args.residual.y = sum.data();
    args.norm.x = sum.data(), args.norm.weight = weight.data(), args.norm.y = y.data();
    args.norm.rms = true, args.norm.rstd = rstd.data();
    kernels.residual_norm_forward(args, stream);
  });
  Buffer<std::uint16_t> rounded(device, count);
  row("to bf16", 1.5 * bytes,
      [&] { kernels.to_bf16(rows, width, x.data(), width, rounded.data(), stream); });
  row("from bf16", 1.5 * bytes,
      [&] { kernels.from_bf16(count, rounded.data(), y.data(), stream); });
  row("sum of squares", bytes, [&] { kernels.sum_of_squares(count, x.data(), stream); });
}

struct Choice {
  bool tiny = false, own = false;
  std::string_view only;    ///< empty: every part
  std::int64_t tokens = 0;  ///< 0: several
  bool has(std::string_view part) const { return only.empty() || only == part; }
};

Choice parse(int argc, char** argv) {
  Choice choice;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const auto value = [&]() -> const char* {
      if (++i == argc) fail_usage("{} wants a value", word);
      return argv[i];
    };
    if (word == "--tiny")
      choice.tiny = true;
    else if (word == "--own")
      choice.own = true;
    else if (word == "--only")
      choice.only = value();
    else if (word == "--tokens")
      choice.tokens = std::atoll(value());
    else
      fail_usage("unknown argument '{}': --tiny, --only PART, --tokens N, --own", word);
  }
  if (!choice.only.empty() && choice.only != "products" && choice.only != "attention" &&
      choice.only != "memory")
    fail_usage("--only {}: it must be products, attention or memory", choice.only);
  if (choice.tokens < 0) fail_usage("--tokens {}: it must be positive", choice.tokens);
  return choice;
}

int run(const Choice& choice) {
  GpuPlugin& plugin = launcher::open_gpu_plugin();
  plugin.gpu_count();
  GpuOptions options;
  options.deterministic = choice.own;
  const auto gpu = plugin.open(options);
  fmt::print("{}; {}; {}\n", launcher::to_string(plugin.describe(0)), plugin.versions(),
             gpu->description());
  Bench bench{gpu->backend(), choice.tiny};
  if (choice.has("memory")) copies(bench);
  if (choice.has("products")) {
    products(bench);
    products_with_gelu(bench);
  }
  if (choice.has("attention")) {
    if (choice.tiny && choice.tokens == 0) {
      attention(bench, 64, 4, 2, 64);
    } else if (choice.tokens > 0) {
      attention(bench, choice.tokens, choice.tiny ? 2 : 64, choice.tiny ? 1 : 8, 128);
    } else {
      for (const std::int64_t tokens : {2048, 4096, 8192, 16384, 32768}) {
        attention(bench, tokens, 64, 8, 128);
        attention(bench, tokens, 32, 32, 64);
      }
    }
  }
  if (choice.has("memory")) memory_bound(bench);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const Error& error) {
    fmt::print(stderr, "bench_gpu_kernels: {}\n", error.what());
    return static_cast<int>(error.status());
  }
}
