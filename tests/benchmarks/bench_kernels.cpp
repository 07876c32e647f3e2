/// GB/s of every operation but attention and matrix products, beside a copy of the same memory in
/// the same run: what the machine can do at best. Bytes are those the operation must move (each
/// input read once, each output written once); GB/s and the ratio are those of the best call, as
/// neighbours on the machine only ever add time. Usage: bench_kernels [--tiny] [--rows N] [--width
/// N] [--instructions NAME]; OMP_NUM_THREADS sets the threads.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "model/kernels/cpu/instruction_set.hpp"
#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"
#include "support/reference.hpp"

using namespace longspan;
using namespace longspan::model;

namespace {

using Floats = std::vector<float>;

/// Seconds of each call, sorted; the first call warms up.
std::vector<double> time(const std::function<void()>& call, double seconds) {
  call();
  std::vector<double> times;
  const auto begin = std::chrono::steady_clock::now();
  double elapsed = 0;
  while (elapsed < seconds || times.size() < 3) {
    const auto before = std::chrono::steady_clock::now();
    call();
    const auto after = std::chrono::steady_clock::now();
    times.push_back(std::chrono::duration<double>(after - before).count());
    elapsed = std::chrono::duration<double>(after - begin).count();
  }
  std::sort(times.begin(), times.end());
  return times;
}

struct Bench {
  double seconds;
  Floats from, to;
  int failures = 0;

  /// `floats`: how many 4-byte elements a call moves.
  void row(const char* name, std::int64_t floats, const std::function<void()>& call,
           const Floats& result) {
    const double bytes = 4.0 * static_cast<double>(floats);
    const std::vector<double> copy = time([&] { copy_all(); }, seconds);
    const std::vector<double> times = time(call, seconds);
    const double median = times[times.size() / 2], p90 = times[times.size() * 9 / 10];
    const double rate = bytes / times.front(),
                 copy_rate = 8.0 * static_cast<double>(from.size()) / copy.front();
    fmt::print("| {} | {:.3f} | {:.3f} | {:.3f} | {:.2f} | {:.2f} |\n", name, 1e3 * times.front(),
               1e3 * median, 1e3 * p90, rate * 1e-9, rate / copy_rate);
    std::fflush(stdout);
    const bool finite =
        std::all_of(result.begin(), result.end(), [](float v) { return std::isfinite(v); });
    if (finite) return;
    fmt::print("{}: the result is not finite\n", name);
    ++failures;
  }
  void copy_all() {
    cpu::parallel_ranges(static_cast<std::int64_t>(from.size()), cpu::kLine, 1,
                         [&](std::int64_t begin, std::int64_t end) {
                           std::memcpy(to.data() + begin, from.data() + begin,
                                       static_cast<std::size_t>(end - begin) * sizeof(float));
                         });
  }
};

}  // namespace

int main(int argc, char** argv) {
  std::int64_t rows = 4096, width = 2048, vocabulary = 50304;
  double seconds = 0.15;
  for (int i = 1; i < argc; ++i) {
    const bool more = i + 1 < argc;
    if (!std::strcmp(argv[i], "--tiny")) {
      rows = 16, width = 256, vocabulary = 1000, seconds = 0.002;
    } else if (!std::strcmp(argv[i], "--rows") && more) {
      rows = std::atoll(argv[++i]);
    } else if (!std::strcmp(argv[i], "--width") && more) {
      width = std::atoll(argv[++i]);
    } else if (!std::strcmp(argv[i], "--instructions") && more) {
      cpu::use_instruction_set(argv[++i]);
    } else {
      fmt::print(stderr,
                 "usage: bench_kernels [--tiny] [--rows N] [--width N] [--instructions NAME]\n");
      return 2;
    }
  }
  const std::int64_t count = rows * width;
  const std::size_t size = static_cast<std::size_t>(count);
  fmt::print("rows {}, width {}, vocabulary {}, fp32, {} threads\n", rows, width, vocabulary,
             omp_get_max_threads());
  fmt::print(
      "| operation | best ms | median ms | p90 ms | GB/s | of copy |\n|---|---|---|---|---|---|\n");

  const Floats noise = testing_support::random_floats(65536, 1);
  Floats x(2 * size), y(2 * size, 0.5f), z(size), m(size), v(size);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = noise[i % noise.size()];
  Floats weight(static_cast<std::size_t>(width), 1.0f), sums(weight.size()), bias(weight.size());
  Floats mean(static_cast<std::size_t>(rows)), rstd(mean.size(), 1.0f);
  std::vector<std::int32_t> positions, ids;
  for (std::int32_t row = 0; row < rows; ++row)
    positions.push_back(row), ids.push_back(row * 7919 % 1000);
  const std::vector<std::int64_t> sequences = {1};
  Floats table(static_cast<std::size_t>(1000 * width), 0.25f);
  Bench bench{seconds, Floats(size, 1.0f), Floats(size)};

  for (const bool rms : {false, true}) {
    const NormForwardArgs forward{rows,
                                  width,
                                  rms,
                                  1e-5f,
                                  x.data(),
                                  weight.data(),
                                  rms ? nullptr : bias.data(),
                                  y.data(),
                                  mean.data(),
                                  rstd.data()};
    bench.row(
        rms ? "rmsnorm forward" : "layernorm forward", 2 * count,
        [&] { cpu::norm_forward(forward); }, y);
    NormBackwardArgs backward{rows,     width,         rms,         x.data() + count,
                              x.data(), weight.data(), mean.data(), rstd.data()};
    backward.dx = z.data();
    backward.dweight = sums.data(), backward.dbias = rms ? nullptr : sums.data();
    bench.row(
        rms ? "rmsnorm backward" : "layernorm backward", 3 * count,
        [&] { cpu::norm_backward(backward); }, z);
  }
  bench.row(
      "gelu forward", 2 * count,
      [&] {
        cpu::gelu_forward({count, x.data(), y.data()});
      },
      y);
  bench.row(
      "gelu backward", 3 * count,
      [&] {
        cpu::gelu_backward({count, x.data(), z.data(), y.data()});
      },
      y);
  bench.row(
      "swiglu forward", 3 * count,
      [&] {
        cpu::swiglu_forward({rows, width, x.data(), z.data()});
      },
      z);
  bench.row(
      "swiglu backward", 5 * count,
      [&] {
        cpu::swiglu_backward({rows, width, x.data(), z.data(), y.data()});
      },
      y);
  const Dropout dropout{0.1f, 7, sequences.data(), positions.data(), rows};
  bench.row(
      "residual", 3 * count,
      [&] {
        cpu::residual_forward({rows, width, x.data(), z.data(), y.data(), {}});
      },
      y);
  bench.row(
      "residual, dropout", 3 * count,
      [&] {
        cpu::residual_forward({rows, width, x.data(), z.data(), y.data(), dropout});
      },
      y);
  bench.row(
      "dropout backward", 2 * count,
      [&] {
        cpu::residual_backward({rows, width, z.data(), y.data(), dropout});
      },
      y);
  const std::int64_t head_size = std::min<std::int64_t>(width, 64);
  Floats angles(static_cast<std::size_t>(rows * head_size), 0.70710678f);
  bench.row(
      "rotary", 2 * count,
      [&] {
        cpu::rotary({rows, width / head_size, head_size, width, y.data(), positions.data(), rows,
                     angles.data()});
      },
      y);
  bench.row(
      "embedding forward", 2 * count,
      [&] {
        cpu::embedding_forward(
            {rows, width, ids.data(), table.data(), nullptr, nullptr, rows, y.data()});
      },
      y);
  bench.row(
      "embedding backward", 3 * count,
      [&] {
        cpu::embedding_backward(
            {rows, width, ids.data(), x.data(), table.data(), nullptr, nullptr, rows});
      },
      table);

  const std::int64_t loss_rows = std::max<std::int64_t>(1, 2 * count / vocabulary);
  const std::vector<std::int32_t> targets(static_cast<std::size_t>(loss_rows), 5);
  Floats losses(targets.size());
  const CrossEntropyArgs loss{loss_rows,      vocabulary,    vocabulary, y.data(),
                              targets.data(), losses.data(), false};
  CrossEntropyArgs loss_backward = loss;
  loss_backward.backward = true;
  bench.row(
      "cross entropy", loss_rows * vocabulary, [&] { cpu::cross_entropy(loss); }, losses);
  bench.row(
      "cross entropy, backward", 2 * loss_rows * vocabulary,
      [&] { cpu::cross_entropy(loss_backward); }, y);

  const AdamwArgs adamw{count, y.data(), x.data(), m.data(), v.data(), 1e-3f,
                        0.9f,  0.95f,    1e-8f,    0.1f,     0.1f,     0.05f};
  bench.row(
      "adamw", 7 * count, [&] { cpu::adamw(adamw); }, y);
  bench.row("add", 3 * count, [&] { cpu::add(count, z.data(), bench.to.data()); }, {});
  bench.row(
      "column sums", count, [&] { cpu::add_column_sums(rows, width, x.data(), sums.data()); },
      sums);
  double total = 0;
  bench.row("sum of squares", count, [&] { total = cpu::sum_of_squares(count, x.data()); }, {});
  bench.row(
      "round to bf16", 2 * count, [&] { cpu::round_to_bf16(count, y.data()); }, y);
  if (!(total > 0)) ++bench.failures;
  return bench.failures;
}
