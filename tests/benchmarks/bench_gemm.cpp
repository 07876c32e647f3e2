/// Matrix products of a training step against the yardstick (oneDNN's sgemm on 2048^3, same
/// threads, same run), in fp32 and with bfloat16 operands including their rounding. CPU time per
/// thread, so that neighbours on the machine disturb little: run with OMP_WAIT_POLICY=passive,
/// waiting threads would count. Usage: bench_gemm [--tiny] [--threads N]
#include <fmt/format.h>
#include <omp.h>
#include <time.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "model/kernels/cpu/gemm.hpp"
#include "parallel/device.hpp"
#include "parallel/random.hpp"
#include "support/peak.hpp"

using namespace longspan;

namespace {

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec)) /
         omp_get_max_threads();
}

template <class Work>
double seconds_of(Work&& work) {
  const double begin = cpu_seconds();
  work();
  return cpu_seconds() - begin;
}

/// FLOP/s of the yardstick in the same clock as the products.
double peak_flops(std::int64_t n) {
  static const std::vector<float> a(static_cast<std::size_t>(n * n), 1.0f);
  static std::vector<float> c(a.size());
  const double seconds = seconds_of(
      [n] { dnnl_sgemm('N', 'N', n, n, n, 1.0f, a.data(), n, a.data(), n, 0.0f, c.data(), n); });
  return 2.0 * static_cast<double>(n * n) * static_cast<double>(n) / seconds;
}

Buffer<float> random_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t key) {
  Buffer<float> x(cpu_device(), rows, cols);
  for (std::int64_t i = 0; i < x.size(); ++i)
    x[i] =
        uniform_from(static_cast<std::uint32_t>(derive_key(key, static_cast<std::uint64_t>(i)))) -
        0.5f;
  return x;
}

/// One element of the product in double.
double element(const model::GemmArgs& args, std::int64_t i, std::int64_t j) {
  double sum = args.bias != nullptr ? args.bias[j] : 0.0;
  for (std::int64_t p = 0; p < args.k; ++p)
    sum += static_cast<double>(args.a[args.trans_a ? p * args.lda + i : i * args.lda + p]) *
           static_cast<double>(args.b[args.trans_b ? j * args.ldb + p : p * args.ldb + j]);
  return sum;
}

/// Measures one product in fp32 and bf16; how many of a few elements were wrong.
int measure(const char* form, model::GemmArgs args, std::int64_t yardstick, int repeats) {
  double peak = 0, fp32 = INFINITY, bf16 = INFINITY;
  int wrong = 0;
  for (int repeat = 0; repeat <= repeats; ++repeat) {  // the first round compiles and warms up
    const double flops = peak_flops(yardstick);
    for (const bool rounded : {false, true}) {
      args.bf16_operands = rounded;
      const std::int64_t i = args.m / 2, j = args.n / 3;
      const double expected =
          element(args, i, j) + (args.accumulate ? args.c[i * args.ldc + j] : 0.0);
      const double seconds = seconds_of([&args] { model::cpu::gemm(args); });
      const double tolerance =
          (rounded ? 2e-2 : 1e-4) * (1 + std::sqrt(static_cast<double>(args.k)));
      wrong += !(std::abs(args.c[i * args.ldc + j] - expected) <= tolerance);
      if (repeat > 0) (rounded ? bf16 : fp32) = std::min(rounded ? bf16 : fp32, seconds);
    }
    if (repeat > 0) peak = std::max(peak, flops);
  }
  const double work =
      2.0 * static_cast<double>(args.m) * static_cast<double>(args.n) * static_cast<double>(args.k);
  fmt::print("| {} | {} x {} x {} | {} | {:.3f} | {:.1f} | {:.2f} | {:.3f} | {:.2f} |{}\n", form,
             args.m, args.n, args.k, omp_get_max_threads(), fp32 * 1e3, work / fp32 * 1e-9,
             work / fp32 / peak, bf16 * 1e3, fp32 / bf16, wrong > 0 ? " WRONG" : "");
  std::fflush(stdout);
  return wrong;
}

/// Forward (with bias), dx and dW of a linear layer of `inputs` x `outputs` on `tokens` tokens.
int measure_layer(std::int64_t tokens, std::int64_t inputs, std::int64_t outputs,
                  std::int64_t yardstick, int repeats) {
  const Buffer<float> x = random_matrix(tokens, inputs, 1), w = random_matrix(outputs, inputs, 2);
  const Buffer<float> y = random_matrix(tokens, outputs, 3), bias = random_matrix(1, outputs, 4);
  const Buffer<float> dx(cpu_device(), tokens, inputs), dw = random_matrix(outputs, inputs, 5);
  const Buffer<float> result(cpu_device(), tokens, outputs);
  model::GemmArgs forward{.m = tokens,
                          .n = outputs,
                          .k = inputs,
                          .a = x.data(),
                          .lda = inputs,
                          .b = w.data(),
                          .ldb = inputs,
                          .trans_b = true,
                          .c = result.data(),
                          .ldc = outputs};
  model::GemmArgs with_bias = forward;
  with_bias.bias = bias.data();
  const model::GemmArgs input_gradient{.m = tokens,
                                       .n = inputs,
                                       .k = outputs,
                                       .a = y.data(),
                                       .lda = outputs,
                                       .b = w.data(),
                                       .ldb = inputs,
                                       .c = dx.data(),
                                       .ldc = inputs};
  const model::GemmArgs weight_gradient{.m = outputs,
                                        .n = inputs,
                                        .k = tokens,
                                        .a = y.data(),
                                        .lda = outputs,
                                        .trans_a = true,
                                        .b = x.data(),
                                        .ldb = inputs,
                                        .c = dw.data(),
                                        .ldc = inputs,
                                        .accumulate = true};
  int wrong = measure("y = x W^T", forward, yardstick, repeats);
  wrong += measure("y = x W^T + bias", with_bias, yardstick, repeats);
  if (tokens < 16) return wrong;  // generation has no backward
  wrong += measure("dx = dy W", input_gradient, yardstick, repeats);
  return wrong + measure("dW += dy^T x", weight_gradient, yardstick, repeats);
}

}  // namespace

int main(int argc, char** argv) {
  bool tiny = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--tiny")) tiny = true;
    if (!std::strcmp(argv[i], "--threads") && i + 1 < argc)
      omp_set_num_threads(std::atoi(argv[++i]));
  }
  fmt::print(
      "| product | m x n x k | threads | fp32 ms | GFLOP/s | of sgemm 2048^3 | bf16 ms | bf16 "
      "speed-up |\n"
      "| --- | --- | --- | --- | --- | --- | --- | --- |\n");
  if (tiny) return measure_layer(64, 128, 384, 256, 1) > 0;
  int wrong = 0;
  const std::int64_t layers[][2] = {{128, 384},  {256, 768},  {256, 1024}, {768, 768},
                                    {768, 2304}, {768, 3072}, {3072, 768}};
  for (const auto& [inputs, outputs] : layers)
    for (const std::int64_t tokens : {1024, 4096})
      wrong += measure_layer(tokens, inputs, outputs, 2048, 3);
  wrong += measure_layer(1024, 768, 50304, 2048, 2);
  for (const std::int64_t tokens : {1, 2, 4})
    for (const std::int64_t outputs : {768, 3072, 50304})
      wrong += measure_layer(tokens, 768, outputs, 2048, 5);
  return wrong > 0;
}
