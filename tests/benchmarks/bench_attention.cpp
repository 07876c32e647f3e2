// How fast the CPU attention kernel is, as a fraction of oneDNN's sgemm at 2048^3 on the same
// threads in the same run.
//   bench_attention [--tiny] [--tokens N] [--heads H] [--kv-heads H] [--head-size D] [--window W]
//   [--batch B] [--full] [--bf16] [--repeats R]
// FLOPs are those of the visible pairs: forward 4 pairs head_size per head, backward 10. Sizes that
// are not given come from a short list. Measurements of sgemm and of attention alternate, because
// clocks and neighbours change.
#include <dnnl.h>
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/kernels/cpu/attention.hpp"
#include "support/attention_problem.hpp"

namespace longspan {
namespace {

using testing_support::AttentionProblem;

struct Size {
  std::int64_t tokens, heads, kv_heads, head_size, window, batch = 1;
};

struct Options {
  bool tiny = false, full = false, bf16 = false;
  std::optional<std::int64_t> tokens, heads, kv_heads, head_size, window, batch, repeats;
};

[[noreturn]] void usage(const std::string& problem) {
  fmt::print(stderr,
             "bench_attention: {}\nusage: bench_attention [--tiny] [--full] [--tokens N] [--heads "
             "H] [--kv-heads H] "
             "[--head-size D] [--window W] [--batch B] [--bf16] [--repeats R]\n",
             problem);
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    std::optional<std::int64_t>* number = name == "--tokens"      ? &options.tokens
                                          : name == "--heads"     ? &options.heads
                                          : name == "--kv-heads"  ? &options.kv_heads
                                          : name == "--head-size" ? &options.head_size
                                          : name == "--window"    ? &options.window
                                          : name == "--batch"     ? &options.batch
                                          : name == "--repeats"   ? &options.repeats
                                                                  : nullptr;
    if (name == "--tiny") {
      options.tiny = true;
    } else if (name == "--full") {
      options.full = true;
    } else if (name == "--bf16") {
      options.bf16 = true;
    } else if (number && i + 1 < argc) {
      char* end = nullptr;
      *number = std::strtoll(argv[++i], &end, 10);
      if (*end != '\0' || **number < 0)
        usage(fmt::format("{} wants a number, not '{}'", name, argv[i]));
    } else {
      usage(fmt::format("'{}' is unknown or lacks its number", name));
    }
  }
  return options;
}

std::vector<Size> sizes(const Options& options) {
  std::vector<Size> list;
  if (options.tiny)
    list = {{384, 2, 1, 64, 0}};
  else if (options.tokens || options.heads || options.kv_heads || options.head_size ||
           options.window)
    list = {{16384, 1, 1, 64, 0}};
  else
    list = {{16384, 1, 1, 64, 0}, {16384, 1, 1, 128, 0}, {4096, 8, 2, 64, 0},
            {1024, 8, 8, 64, 0},  {256, 16, 16, 64, 0},  {16384, 1, 1, 64, 1024}};
  for (Size& size : list) {
    size.tokens = options.tokens.value_or(size.tokens);
    size.heads = options.heads.value_or(size.heads);
    size.kv_heads = options.kv_heads.value_or(options.heads ? size.heads : size.kv_heads);
    size.head_size = options.head_size.value_or(size.head_size);
    size.batch = options.batch.value_or(size.batch);
    size.window = options.window.value_or(size.window);
  }
  return list;
}

template <class Work>
double seconds(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Seconds of one product of square matrices.
class Sgemm {
 public:
  explicit Sgemm(std::int64_t width) : width_(width), a_(width * width, 0.5f), b_(a_), c_(a_) {}
  double run() {
    return seconds([&] {
      dnnl_sgemm('N', 'N', width_, width_, width_, 1.0f, a_.data(), width_, b_.data(), width_, 0.0f,
                 c_.data(), width_);
    });
  }
  double flops() const { return 2.0 * static_cast<double>(width_ * width_ * width_); }

 private:
  std::int64_t width_;
  std::vector<float> a_, b_, c_;
};

/// Buffers and calls of one size; tensors are contiguous.
class Attention {
 public:
  explicit Attention(const Size& size, bool causal, bool bf16)
      : problem_(size.batch, size.tokens, size.tokens, size.heads, size.kv_heads, size.head_size,
                 {causal, size.window}),
        o_(problem_.q.size()),
        dq_(o_.size()),
        lse_(size.batch * size.heads * size.tokens),
        delta_(lse_.size()),
        dk_(problem_.k.size()),
        dv_(dk_.size()) {
    if (bf16) problem_.rounded_to_bf16();
    problem_.bind();
  }
  void forward() {
    const auto& shape = problem_.shape;
    const std::int64_t row = shape.heads * shape.head_size,
                       kv_row = shape.kv_heads * shape.head_size;
    model::cpu::attention_forward({.shape = shape,
                                   .q = problem_.q.data(),
                                   .k = problem_.k.data(),
                                   .v = problem_.v.data(),
                                   .q_row = row,
                                   .q_batch = row * shape.queries,
                                   .kv_row = kv_row,
                                   .kv_batch = kv_row * shape.keys,
                                   .o = o_.data(),
                                   .o_row = row,
                                   .o_batch = row * shape.queries,
                                   .lse = lse_.data()});
  }
  void backward() {
    const auto& shape = problem_.shape;
    const std::int64_t row = shape.heads * shape.head_size,
                       kv_row = shape.kv_heads * shape.head_size;
    model::cpu::attention_delta({.batch = shape.batch,
                                 .queries = shape.queries,
                                 .heads = shape.heads,
                                 .head_size = shape.head_size,
                                 .o = o_.data(),
                                 .o_row = row,
                                 .o_batch = row * shape.queries,
                                 .dout = problem_.dout.data(),
                                 .dout_row = row,
                                 .dout_batch = row * shape.queries,
                                 .delta = delta_.data()});
    model::cpu::attention_backward({.shape = shape,
                                    .q = problem_.q.data(),
                                    .k = problem_.k.data(),
                                    .v = problem_.v.data(),
                                    .q_row = row,
                                    .q_batch = row * shape.queries,
                                    .kv_row = kv_row,
                                    .kv_batch = kv_row * shape.keys,
                                    .dout = problem_.dout.data(),
                                    .dout_row = row,
                                    .dout_batch = row * shape.queries,
                                    .lse = lse_.data(),
                                    .delta = delta_.data(),
                                    .dq = dq_.data(),
                                    .dq_row = row,
                                    .dq_batch = row * shape.queries,
                                    .dk = dk_.data(),
                                    .dv = dv_.data(),
                                    .dkv_row = kv_row,
                                    .dkv_batch = kv_row * shape.keys});
  }
  double pair_flops() {
    const auto& shape = problem_.bind();
    return static_cast<double>(model::visible_pairs(shape) * shape.batch * shape.heads *
                               shape.head_size);
  }

 private:
  AttentionProblem problem_;
  std::vector<float> o_, dq_, lse_, delta_, dk_, dv_;
};

/// The same mask, heads and head size on few tokens, against the oracle.
void verify(const Size& size, bool causal, bool bf16) {
  const std::int64_t window = std::min<std::int64_t>(size.window, 90);
  AttentionProblem problem(1, 200, 200, size.heads / size.kv_heads, 1, size.head_size,
                           {causal, window});
  if (bf16) problem.rounded_to_bf16();
  const auto expected = problem.reference();
  const auto actual = testing_support::attention_forward(problem);
  const auto gradients = testing_support::attention_backward(problem, actual);
  const double worst = std::max({testing_support::relative_error(actual.o, expected.o),
                                 testing_support::relative_error(gradients.dq, expected.dq),
                                 testing_support::relative_error(gradients.dk, expected.dk),
                                 testing_support::relative_error(gradients.dv, expected.dv)});
  if (worst <= (bf16 ? 4e-3 : 2e-6)) return;
  fmt::print(stderr,
             "bench_attention: the kernel is wrong: relative error {:.2e} against the oracle\n",
             worst);
  std::exit(1);
}

void print_row(const Size& size, bool causal, bool bf16, const char* pass, double time,
               double flops, double peak) {
  const std::string mask =
      fmt::format("{}{}", causal ? "causal" : "full",
                  size.window > 0 ? fmt::format(" window={}", size.window) : "");
  fmt::print(
      "attention {} batch={} tokens={} heads={} kv_heads={} head_size={} mask=\"{}\" threads={} "
      "pass={:<16} "
      "median_ms={:.3f} GFLOP/s={:.1f} of_sgemm={:.1f}%\n",
      bf16 ? "bf16" : "fp32", size.batch, size.tokens, size.heads, size.kv_heads, size.head_size,
      mask, omp_get_max_threads(), pass, 1e3 * time, 1e-9 * flops / time,
      100.0 * flops / time / peak);
}

void run(const Size& size, const Options& options) {
  const bool causal = !options.full;
  verify(size, causal, options.bf16);
  Attention attention(size, causal, options.bf16);
  Sgemm sgemm(options.tiny ? 256 : 2048);
  const double flops = attention.pair_flops();
  const auto measure = [&](auto&& work, std::int64_t calls) {
    return seconds([&] {
             for (std::int64_t i = 0; i < calls; ++i) work();
           }) /
           static_cast<double>(calls);
  };
  sgemm.run();
  const double warm_up = seconds([&] {
    attention.forward();
    attention.backward();
  });
  // Calls of short passes are repeated until they fill 20 ms.
  const auto calls =
      options.tiny ? 1 : std::max<std::int64_t>(1, static_cast<std::int64_t>(0.02 / warm_up));
  std::vector<double> forward, backward, both, reference;
  for (std::int64_t i = 0; i < options.repeats.value_or(options.tiny ? 2 : 7); ++i) {
    reference.push_back(sgemm.run());
    forward.push_back(measure([&] { attention.forward(); }, calls));
    reference.push_back(sgemm.run());
    backward.push_back(measure([&] { attention.backward(); }, calls));
    both.push_back(forward.back() + backward.back());
  }
  const double peak = sgemm.flops() / median(reference);
  fmt::print("sgemm fp32 width={} threads={} median_ms={:.3f} GFLOP/s={:.1f}\n",
             options.tiny ? 256 : 2048, omp_get_max_threads(), 1e3 * median(reference),
             1e-9 * peak);
  print_row(size, causal, options.bf16, "forward", median(forward), 4 * flops, peak);
  print_row(size, causal, options.bf16, "backward", median(backward), 10 * flops, peak);
  print_row(size, causal, options.bf16, "forward+backward", median(both), 14 * flops, peak);
}

}  // namespace
}  // namespace longspan

int main(int argc, char** argv) {
  const auto options = longspan::parse(argc, argv);
  for (const auto& size : longspan::sizes(options)) longspan::run(size, options);
}
