#include "launcher/calibrate_rates.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "launcher/duration.hpp"
#include "model/kernels/kernels.hpp"

namespace longspan::launcher {
namespace {

using Clock = std::chrono::steady_clock;

Buffer<float> filled(Device& device, std::int64_t count) {
  Buffer<float> buffer(device, count);
  // Small numbers of both signs: denormals and infinities would change the speed.
  for (std::int64_t i = 0; i < count; ++i)
    buffer.data()[i] = static_cast<float>((i * 7919) % 1021) / 1021.0f - 0.5f;
  return buffer;
}

/// Rates of several operations, measured in turns: what disturbs the machine for a second disturbs
/// one turn, and the operations are compared while the machine is as fast.
class Meter {
 public:
  Meter(const model::Backend& backend, const Communicator& world, const Communicator& node)
      : backend_(backend), world_(world), node_(node) {}

  /// `call` does `amount`. `tell` is called by measure().
  void add(double amount, std::function<void()> call, std::function<void(double)> tell) {
    operations_.push_back({amount, std::move(call), std::move(tell), 1, {}});
  }

  /// Tells `amount` / seconds of every operation: the median turn, a row of calls of at least kRow
  /// seconds, all ranks at once; of the node, and of the slowest one. Not of single calls: where
  /// ranks share a core, one that is shorter than the system's time slice has the core for itself,
  /// and all ranks together would seem to have more cores than there are. Collective.
  void measure() {
    constexpr int kTurns = 3;
    constexpr double kRow = 0.03;
    for (Operation& one : operations_) {
      row(one);  // compiles and warms up
      // All ranks call equally often.
      one.calls = world_.all_reduce_max(
          static_cast<std::int64_t>(std::min(1e4, std::ceil(kRow / row(one)))));
    }
    for (int turn = 0; turn < kTurns; ++turn)
      for (Operation& one : operations_) one.seconds.push_back(row(one));
    for (Operation& one : operations_) {
      std::nth_element(one.seconds.begin(), one.seconds.begin() + kTurns / 2, one.seconds.end());
      const double mine = one.amount * static_cast<double>(one.calls) / one.seconds[kTurns / 2];
      one.tell(-world_.all_reduce_max(-node_.all_reduce_sum(mine)));
    }
  }

 private:
  struct Operation {
    double amount;
    std::function<void()> call;
    std::function<void(double)> tell;
    std::int64_t calls;
    std::vector<double> seconds;
  };

  /// Seconds of one row, after all ranks have come.
  double row(const Operation& one) {
    world_.barrier();
    const auto begin = Clock::now();
    for (std::int64_t i = 0; i < one.calls; ++i) one.call();
    backend_.stream.synchronize();
    return seconds_since(begin);
  }

  const model::Backend& backend_;
  const Communicator& world_;
  const Communicator& node_;
  std::vector<Operation> operations_;
};

/// Forward and both gradients of a linear layer width -> width over 1024 rows. Activations and
/// their gradients are fresh arrays, here and in attention, as they are in a step.
void add_linear(const model::Backend& backend, Meter& meter, std::int64_t width, bool bf16,
                RateTable& table) {
  constexpr std::int64_t kRows = 1024;
  struct Arrays {
    Buffer<float> x, w, dy, dw;
  };
  Device& device = backend.device;
  const auto arrays = std::make_shared<Arrays>(
      Arrays{filled(device, kRows * width), filled(device, width * width),
             filled(device, kRows * width), filled(device, width * width)});
  const auto call = [&backend, arrays, width, bf16] {
    const auto product = [&](std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                             bool trans_a, const float* b, bool trans_b, float* c,
                             bool accumulate) {
      model::GemmArgs args;
      args.m = m, args.n = n, args.k = k;
      args.a = a, args.trans_a = trans_a, args.lda = trans_a ? m : k;
      args.b = b, args.trans_b = trans_b, args.ldb = trans_b ? k : n;
      args.c = c, args.ldc = n, args.accumulate = accumulate;
      args.bf16_operands = bf16;
      backend.kernels.gemm(args, backend.stream);
    };
    const float *x = arrays->x.data(), *w = arrays->w.data(), *gradient = arrays->dy.data();
    Buffer<float> y(backend.device, kRows * width), dx(backend.device, kRows * width);
    product(kRows, width, width, x, false, w, true, y.data(), false);
    product(kRows, width, width, gradient, false, w, false, dx.data(), false);
    product(width, width, kRows, gradient, true, x, false, arrays->dw.data(), true);
    backend.stream.synchronize();
  };
  meter.add(6.0 * kRows * static_cast<double>(width * width), call, [&table, width](double rate) {
    table.entries.emplace_back(static_cast<double>(width), rate);
  });
}

/// Forward and backward over `tokens` causal tokens.
void add_attention(const model::Backend& backend, Meter& meter, std::int64_t tokens, bool bf16,
                   MachineRates& rates) {
  constexpr std::int64_t kHeads = 4, kSize = 64, kWidth = kHeads * kSize;
  struct Arrays {
    Buffer<float> q, k, v, dout, o, lse, delta;
    std::vector<std::int32_t> positions;
    model::AttentionForwardArgs forward;
    model::AttentionBackwardArgs backward;
  };
  Device& device = backend.device;
  const auto one = [&] { return filled(device, tokens * kWidth); };
  const auto arrays = std::make_shared<Arrays>(Arrays{one(),
                                                      one(),
                                                      one(),
                                                      one(),
                                                      one(),
                                                      filled(device, tokens * kHeads),
                                                      filled(device, tokens * kHeads),
                                                      std::vector<std::int32_t>(tokens),
                                                      {},
                                                      {}});
  Arrays& a = *arrays;
  std::iota(a.positions.begin(), a.positions.end(), 0);
  model::AttentionForwardArgs& forward = a.forward;
  forward.shape.batch = 1, forward.shape.queries = forward.shape.keys = tokens;
  forward.shape.heads = forward.shape.kv_heads = kHeads, forward.shape.head_size = kSize;
  forward.shape.query_positions = forward.shape.key_positions = a.positions.data();
  forward.shape.mask = {true, 0};
  forward.shape.scale = 0.125f;
  forward.shape.bf16_operands = bf16;
  forward.q = a.q.data(), forward.k = a.k.data(), forward.v = a.v.data();
  forward.q_row = forward.kv_row = forward.o_row = kWidth;
  forward.q_batch = forward.kv_batch = forward.o_batch = tokens * kWidth;
  forward.o = a.o.data(), forward.lse = a.lse.data();
  backend.kernels.attention_forward(forward, backend.stream);

  model::AttentionDeltaArgs rowsums;
  rowsums.batch = 1, rowsums.queries = tokens, rowsums.heads = kHeads, rowsums.head_size = kSize;
  rowsums.o = a.o.data(), rowsums.dout = a.dout.data(), rowsums.delta = a.delta.data();
  rowsums.o_row = rowsums.dout_row = kWidth;
  rowsums.o_batch = rowsums.dout_batch = tokens * kWidth;
  backend.kernels.attention_delta(rowsums, backend.stream);
  model::AttentionBackwardArgs& backward = a.backward;
  backward.shape = forward.shape;
  backward.q = a.q.data(), backward.k = a.k.data(), backward.v = a.v.data();
  backward.dout = a.dout.data();
  backward.q_row = backward.kv_row = backward.dout_row = backward.dq_row = backward.dkv_row =
      kWidth;
  backward.q_batch = backward.kv_batch = backward.dout_batch = backward.dq_batch =
      backward.dkv_batch = tokens * kWidth;
  backward.lse = a.lse.data(), backward.delta = a.delta.data();

  const double pairs =
      static_cast<double>(model::visible_pairs(forward.shape)) * static_cast<double>(kWidth);
  const auto length = static_cast<double>(tokens);
  const auto entry = [length](RateTable& table) {
    return [&table, length](double rate) { table.entries.emplace_back(length, rate); };
  };
  meter.add(
      4 * pairs,
      [&backend, arrays, tokens] {
        Buffer<float> fresh(backend.device, tokens * kWidth);
        model::AttentionForwardArgs args = arrays->forward;
        args.o = fresh.data();
        backend.kernels.attention_forward(args, backend.stream);
        backend.stream.synchronize();
      },
      entry(rates.attention_forward_flops));
  meter.add(
      8 * pairs,
      [&backend, arrays, tokens] {
        const std::int64_t count = tokens * kWidth;
        Buffer<float> fresh(backend.device, 3 * count);  // sums: cleared first
        backend.device.fill_zero(
            fresh.data(), static_cast<std::size_t>(fresh.size()) * sizeof(float), backend.stream);
        model::AttentionBackwardArgs args = arrays->backward;
        args.dq = fresh.data(), args.dk = fresh.data() + count, args.dv = fresh.data() + 2 * count;
        backend.kernels.attention_backward(args, backend.stream);
        backend.stream.synchronize();
      },
      entry(rates.attention_backward_flops));
}

/// Bytes/s of the operations that touch each element once: a norm, SwiGLU and a sum of arrays,
/// weighted as they stand here. Outputs are fresh arrays, as in a step: their first touch costs (27
/// against 45 GB/s with warm ones on a Xeon).
void add_pointwise(const model::Backend& backend, Meter& meter, double& bandwidth) {
  constexpr std::int64_t kRows = 1024, kWidth = 512, kCount = kRows * kWidth;
  struct Arrays {
    Buffer<float> x, weight;
  };
  const auto arrays = std::make_shared<Arrays>(
      Arrays{filled(backend.device, 2 * kCount), filled(backend.device, kWidth)});
  const auto call = [&backend, arrays] {
    Buffer<float> normed(backend.device, kCount), rstd(backend.device, kRows),
        gated(backend.device, kCount);
    model::NormForwardArgs norm;
    norm.rows = kRows, norm.width = kWidth, norm.rms = true;
    norm.x = arrays->x.data(), norm.weight = arrays->weight.data(), norm.y = normed.data();
    norm.rstd = rstd.data();
    backend.kernels.norm_forward(norm, backend.stream);
    model::SwigluForwardArgs swiglu;
    swiglu.rows = kRows, swiglu.width = kWidth;
    swiglu.gate_up = arrays->x.data(), swiglu.y = gated.data();
    backend.kernels.swiglu_forward(swiglu, backend.stream);
    backend.kernels.add(kCount, normed.data(), gated.data(), backend.stream);
    backend.stream.synchronize();
  };
  meter.add(8.0 * 4 * kCount, call, [&bandwidth](double rate) { bandwidth = rate; });
}

}  // namespace

void measure_rates(MachineDescription& machine, const model::Backend& backend,
                   const Communicator& world, const Communicator& node) {
  Meter meter(backend, world, node);
  for (const bool bf16 : {false, true}) {
    MachineRates& rates = bf16 ? machine.bf16 : machine.fp32;
    for (const std::int64_t width : {64, 256, 512, 1024, 2048})
      add_linear(backend, meter, width, bf16, rates.linear_flops);
    for (const std::int64_t tokens : {256, 1024, 4096})
      add_attention(backend, meter, tokens, bf16, rates);
  }
  add_pointwise(backend, meter, machine.pointwise_bandwidth);
  meter.measure();
}

}  // namespace longspan::launcher
