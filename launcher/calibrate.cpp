#include "launcher/calibrate.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <tuple>

#include "launcher/calibrate_step.hpp"
#include "launcher/compute.hpp"
#include "launcher/duration.hpp"
#include "launcher/launch.hpp"
#include "launcher/machine.hpp"
#include "launcher/memory_plan.hpp"
#include "model/kernels/kernels.hpp"
#include "model/layer.hpp"
#include "parallel/agree.hpp"
#include "parallel/link_probe.hpp"
#include "parallel/process_group.hpp"

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

class Meter {
 public:
  Meter(const model::Backend& backend, const Communicator& world)
      : backend_(backend), world_(world), node_(world.split_by_node()) {}

  /// `amount` / seconds of `call`, the median of repeats that take a tenth of a second in all, at
  /// least three; all ranks at once; of the node, and of the slowest one. Collective.
  double rate(double amount, const std::function<void()>& call) {
    call();  // compiles and warms up
    backend_.stream.synchronize();
    std::vector<double> seconds;
    double spent = 0;
    while (true) {
      world_.barrier();
      const auto begin = Clock::now();
      call();
      backend_.stream.synchronize();
      seconds.push_back(seconds_since(begin));
      spent += seconds.back();
      // All ranks repeat equally often.
      if (world_.all_reduce_min(std::int64_t{seconds.size() >= 3 && spent > 0.1}) != 0) break;
    }
    std::nth_element(seconds.begin(),
                     seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2),
                     seconds.end());
    const double mine = amount / seconds[seconds.size() / 2];
    return -world_.all_reduce_max(-node_.all_reduce_sum(mine));
  }

  const Communicator& node() const { return node_; }

 private:
  const model::Backend& backend_;
  const Communicator& world_;
  Communicator node_;
};

/// Forward and both gradients of a linear layer width -> width over 1024 rows. Activations and
/// their gradients are fresh arrays, here and in attention, as they are in a step.
double linear_flops(const model::Backend& backend, Meter& meter, std::int64_t width, bool bf16) {
  constexpr std::int64_t kRows = 1024;
  const auto x = filled(backend.device, kRows * width), w = filled(backend.device, width * width);
  const auto dy = filled(backend.device, kRows * width);
  auto dw = filled(backend.device, width * width);
  const auto product = [&](std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                           bool trans_a, const float* b, bool trans_b, float* c, bool accumulate) {
    model::GemmArgs args;
    args.m = m, args.n = n, args.k = k;
    args.a = a, args.trans_a = trans_a, args.lda = trans_a ? m : k;
    args.b = b, args.trans_b = trans_b, args.ldb = trans_b ? k : n;
    args.c = c, args.ldc = n, args.accumulate = accumulate;
    args.bf16_operands = bf16;
    backend.kernels.gemm(args, backend.stream);
  };
  return meter.rate(6.0 * kRows * static_cast<double>(width * width), [&] {
    Buffer<float> y(backend.device, kRows * width), dx(backend.device, kRows * width);
    product(kRows, width, width, x.data(), false, w.data(), true, y.data(), false);
    product(kRows, width, width, dy.data(), false, w.data(), false, dx.data(), false);
    product(width, width, kRows, dy.data(), true, x.data(), false, dw.data(), true);
    backend.stream.synchronize();
  });
}

/// Forward and backward over `tokens` causal tokens.
void measure_attention(const model::Backend& backend, Meter& meter, std::int64_t tokens,
                       MachineRates& rates) {
  constexpr std::int64_t kHeads = 4, kSize = 64, kWidth = kHeads * kSize;
  std::vector<std::int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 0);
  const auto q = filled(backend.device, tokens * kWidth),
             k = filled(backend.device, tokens * kWidth),
             v = filled(backend.device, tokens * kWidth),
             dout = filled(backend.device, tokens * kWidth);
  auto o = filled(backend.device, tokens * kWidth), lse = filled(backend.device, tokens * kHeads),
       delta = filled(backend.device, tokens * kHeads);
  model::AttentionForwardArgs forward;
  forward.shape.batch = 1, forward.shape.queries = forward.shape.keys = tokens;
  forward.shape.heads = forward.shape.kv_heads = kHeads, forward.shape.head_size = kSize;
  forward.shape.query_positions = forward.shape.key_positions = positions.data();
  forward.shape.mask = {true, 0};
  forward.shape.scale = 0.125f;
  forward.q = q.data(), forward.k = k.data(), forward.v = v.data();
  forward.q_row = forward.kv_row = forward.o_row = kWidth;
  forward.q_batch = forward.kv_batch = forward.o_batch = tokens * kWidth;
  forward.o = o.data(), forward.lse = lse.data();
  const double pairs =
      static_cast<double>(model::visible_pairs(forward.shape)) * static_cast<double>(kWidth);
  const double forward_flops = meter.rate(4 * pairs, [&] {
    Buffer<float> fresh(backend.device, tokens * kWidth);
    forward.o = fresh.data();
    backend.kernels.attention_forward(forward, backend.stream);
    backend.stream.synchronize();
  });
  forward.o = o.data();
  backend.kernels.attention_forward(forward, backend.stream);

  model::AttentionDeltaArgs rowsums;
  rowsums.batch = 1, rowsums.queries = tokens, rowsums.heads = kHeads, rowsums.head_size = kSize;
  rowsums.o = o.data(), rowsums.dout = dout.data(), rowsums.delta = delta.data();
  rowsums.o_row = rowsums.dout_row = kWidth;
  rowsums.o_batch = rowsums.dout_batch = tokens * kWidth;
  backend.kernels.attention_delta(rowsums, backend.stream);
  model::AttentionBackwardArgs backward;
  backward.shape = forward.shape;
  backward.q = q.data(), backward.k = k.data(), backward.v = v.data(), backward.dout = dout.data();
  backward.q_row = backward.kv_row = backward.dout_row = backward.dq_row = backward.dkv_row =
      kWidth;
  backward.q_batch = backward.kv_batch = backward.dout_batch = backward.dq_batch =
      backward.dkv_batch = tokens * kWidth;
  backward.lse = lse.data(), backward.delta = delta.data();
  const double backward_flops = meter.rate(8 * pairs, [&] {
    Buffer<float> fresh(backend.device, 3 * tokens * kWidth);  // sums: cleared first
    backend.device.fill_zero(fresh.data(), static_cast<std::size_t>(fresh.size()) * sizeof(float),
                             backend.stream);
    backward.dq = fresh.data(), backward.dk = fresh.data() + tokens * kWidth;
    backward.dv = fresh.data() + 2 * tokens * kWidth;
    backend.kernels.attention_backward(backward, backend.stream);
    backend.stream.synchronize();
  });
  const auto length = static_cast<double>(tokens);
  rates.attention_forward_flops.entries.emplace_back(length, forward_flops);
  rates.attention_backward_flops.entries.emplace_back(length, backward_flops);
}

/// Bytes/s of the operations that touch each element once: a norm, SwiGLU and a sum of arrays,
/// weighted as they stand here. Outputs are fresh arrays, as in a step: their first touch costs (27
/// against 45 GB/s with warm ones on a Xeon).
double pointwise_bandwidth(const model::Backend& backend, Meter& meter) {
  constexpr std::int64_t kRows = 1024, kWidth = 512, kCount = kRows * kWidth;
  const auto x = filled(backend.device, 2 * kCount), weight = filled(backend.device, kWidth);
  model::NormForwardArgs norm;
  norm.rows = kRows, norm.width = kWidth, norm.rms = true;
  model::SwigluForwardArgs swiglu;
  swiglu.rows = kRows, swiglu.width = kWidth;
  return meter.rate(8.0 * 4 * kCount, [&] {
    Buffer<float> normed(backend.device, kCount), rstd(backend.device, kRows),
        gated(backend.device, kCount);
    norm.x = x.data(), norm.weight = weight.data(), norm.y = normed.data();
    norm.rstd = rstd.data();
    backend.kernels.norm_forward(norm, backend.stream);
    swiglu.gate_up = x.data(), swiglu.y = gated.data();
    backend.kernels.swiglu_forward(swiglu, backend.stream);
    backend.kernels.add(kCount, normed.data(), gated.data(), backend.stream);
    backend.stream.synchronize();
  });
}

struct LinkResult {
  MachineLink inside, between;
};

/// Of a ring over `ranks` in which all send at the same time, as the exchanges of a step do,
/// through the same communication threads; the slowest rank's. Collective over `world`; a ring of
/// one measures nothing.
MachineLink ring_link(const Communicator& world, const Communicator& ranks) {
  constexpr std::int64_t kLarge = 1 << 20, kRepeats = 5;
  const auto group = make_mpi_group(ranks);
  const int next = (ranks.rank() + 1) % ranks.size(),
            previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  const std::vector<float> out(kLarge, 0.5f);
  std::vector<float> in(kLarge);
  // The median of repeats, each the slowest rank's.
  const auto seconds = [&](std::int64_t count) {
    std::vector<double> all;
    for (int i = 0; i <= kRepeats; ++i) {
      world.barrier();
      const auto begin = Clock::now();
      if (ranks.size() > 1)
        group->send_receive({out.data(), count}, next, {in.data(), count}, previous)->wait();
      const double slowest = world.all_reduce_max(seconds_since(begin));
      if (i > 0) all.push_back(slowest);  // the first connects
    }
    std::nth_element(all.begin(), all.begin() + kRepeats / 2, all.end());
    return all[kRepeats / 2];
  };
  MachineLink link;
  link.latency = seconds(1);
  link.bandwidth = 4.0 * kLarge / std::max(1e-9, seconds(kLarge) - link.latency);
  return link;
}

/// Between the ranks of a node, and between those with the same place on their nodes; alone, a copy
/// within memory.
LinkResult measure_links(const Communicator& world, const Communicator& node) {
  LinkResult result;
  const bool shared = world.all_reduce_max(std::int64_t{node.size()}) > 1,
             several = world.all_reduce_min(std::int64_t{node.size()}) < world.size();
  if (shared) result.inside = ring_link(world, node);
  if (several)
    result.between = ring_link(world, world.split(node.rank(), world.rank(), "same place"));
  if (!shared && !several) {
    const std::vector<char> from(8 << 20, 1);
    std::vector<char> to(from.size());
    std::memcpy(to.data(), from.data(), from.size());
    const auto begin = Clock::now();
    std::memcpy(to.data(), from.data(), from.size());
    // Through shared memory: once in, once out.
    result.inside.bandwidth = static_cast<double>(from.size()) / seconds_since(begin) / 2;
    result.inside.latency = 1e-6;
  }
  if (!shared && several) result.inside = result.between;
  if (!several) result.between = result.inside;
  return result;
}

/// Bytes/s of this rank writing to `folder` with fsync, and reading it back, while all do.
std::pair<double, double> measure_storage(const Communicator& world, const std::string& folder) {
  constexpr std::size_t kBytes = std::size_t{16} << 20;
  const std::string path = fmt::format("{}/calibrate.{}.tmp", folder, world.rank());
  double written = 0, read = 0;
  agree(world, [&] {
    const std::vector<char> data(kBytes, 7);
    const auto begin = Clock::now();
    const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
    const bool wrote = file >= 0 &&
                       ::write(file, data.data(), kBytes) == static_cast<ssize_t>(kBytes) &&
                       ::fsync(file) == 0;
    const std::string why = std::strerror(errno);
    written = static_cast<double>(kBytes) / seconds_since(begin);
    std::vector<char> back(kBytes);
    const auto reading = Clock::now();
    const bool got = wrote && ::pread(file, back.data(), kBytes, 0) == static_cast<ssize_t>(kBytes);
    read = static_cast<double>(kBytes) / seconds_since(reading);
    if (file >= 0) ::close(file);
    ::unlink(path.c_str());
    if (!got) fail("{}: cannot write and read 16 MiB there: {}", folder, why);
  });
  return {-world.all_reduce_max(-written), -world.all_reduce_max(-read)};
}

}  // namespace

MachineDescription measure_machine(const Communicator& world, const std::string& folder) {
  const model::Backend backend = cpu_compute().backend;
  Meter meter(backend, world);
  MachineDescription m;
  m.name = "local";
  m.shares_cores = true;
  m.ranks_per_node = static_cast<int>(world.all_reduce_max(std::int64_t{meter.node().size()}));
  const Cores cores = usable_cores();
  m.cores = cores.count * affinity_masks(meter.node()).different;
  for (const bool bf16 : {false, true}) {
    MachineRates& rates = bf16 ? m.bf16 : m.fp32;
    for (const std::int64_t width : {64, 256, 512, 1024, 2048})
      rates.linear_flops.entries.emplace_back(static_cast<double>(width),
                                              linear_flops(backend, meter, width, bf16));
    // What `train` calls 100 % of MFU, of a node.
    rates.peak_flops = measure_peak_flops(backend, bf16, world) * m.ranks_per_node / world.size();
  }
  for (const std::int64_t tokens : {256, 1024, 4096})
    measure_attention(backend, meter, tokens, m.fp32);
  // Attention computes in fp32 under both precisions.
  m.bf16.attention_forward_flops = m.fp32.attention_forward_flops;
  m.bf16.attention_backward_flops = m.fp32.attention_backward_flops;
  m.pointwise_bandwidth = pointwise_bandwidth(backend, meter);
  m.memory_bytes = static_cast<double>(world.all_reduce_min(node_memory().bytes));
  const InStep fp32 = measure_in_step(m, model::Precision::kFp32, world),
               bf16 = measure_in_step(m, model::Precision::kBf16, world);
  m.fp32.linear_flops *= 1 / fp32.products;
  m.bf16.linear_flops *= 1 / bf16.products;
  for (MachineRates* rates : {&m.fp32, &m.bf16}) {
    rates->attention_forward_flops *= 1 / fp32.attention;
    rates->attention_backward_flops *= 1 / fp32.attention;
  }
  m.pointwise_bandwidth /= fp32.pointwise;
  const LinkResult links = measure_links(world, meter.node());
  m.inside = links.inside, m.between = links.between;
  const Copying copying = measure_copying(m, world, meter.node());
  for (MachineLink* link : {&m.inside, &m.between}) {
    link->core_seconds_per_byte = copying.exchanges;
    link->tensor_core_seconds_per_byte = copying.tensor;
  }
  std::tie(m.write_bandwidth, m.read_bandwidth) = measure_storage(world, folder);
  // The process has run every kind of operation: what it holds beside its arrays, all of which are
  // gone.
  m.program_bytes = static_cast<double>(world.all_reduce_max(resident_bytes()));
  return m;
}

std::string machine_ini(const MachineDescription& m, const std::string& how) {
  const auto table = [](const RateTable& rates) {
    std::string text;
    for (const auto& [size, rate] : rates.entries)
      text += fmt::format("{}{:.0f}:{:.4g}", text.empty() ? "" : " ", size, rate);
    return text;
  };
  const auto rates = [&](const char* name, const MachineRates& r) {
    return fmt::format(
        "\n[{}]\nlinear-flops = {}\nattention-forward-flops = {}\nattention-backward-flops = {}\n"
        "peak-flops = {:.4g}\n",
        name, table(r.linear_flops), table(r.attention_forward_flops),
        table(r.attention_backward_flops), r.peak_flops);
  };
  const auto link = [](const char* which, const MachineLink& l) {
    return fmt::format(
        "{0}-bandwidth = {1:.4g}\n{0}-latency = {2:.3g}\n{0}-core-seconds-per-byte = {3:.3g}\n"
        "{0}-tensor-core-seconds-per-byte = {4:.3g}\n",
        which, l.bandwidth, l.latency, l.core_seconds_per_byte, l.tensor_core_seconds_per_byte);
  };
  return fmt::format("# {}\n\n[machine]\nname = {}\nranks-per-node = {}\nshares-cores = {}\n", how,
                     m.name, m.ranks_per_node, m.shares_cores ? "on" : "off") +
         (m.cores > 0 ? fmt::format("cores = {}\n", m.cores) : "") +
         (m.fp32.given() ? rates("fp32", m.fp32) : "") +
         (m.bf16.given() ? rates("bf16", m.bf16) : "") +
         fmt::format(
             "\n[memory]\nbytes = {:.6g}\npointwise-bandwidth = {:.4g}\nprogram-bytes = {:.4g}\n"
             "{}{}"
             "\n[storage]\nwrite-bandwidth = {:.4g}\nread-bandwidth = {:.4g}\n"
             "\n[power]\nwatts-per-rank = {:g}\nwatts-per-node = {:g}\n"
             "\n[price]\nper-rank-hour = {:g}\npue = {:g}\ngrams-co2-per-kwh = {:g}\n",
             m.memory_bytes, m.pointwise_bandwidth, m.program_bytes,
             "\n[links]\n" + link("inside", m.inside), link("between", m.between),
             m.write_bandwidth, m.read_bandwidth, m.watts_per_rank, m.watts_per_node,
             m.price_per_rank_hour, m.pue, m.grams_co2_per_kwh);
}

std::string calibrate(const Communicator& world, const std::string& path) {
  namespace fs = std::filesystem;
  const std::string target = path.empty() ? user_folder() + "/local.ini" : path;
  const std::string folder =
      fs::path(target).parent_path().empty() ? "." : fs::path(target).parent_path().string();
  agree(world, [&] {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) fail("{}: cannot be made: {}", folder, error.message());
  });
  const MachineDescription machine = measure_machine(world, folder);
  const auto nodes = parallel::node_names(world);
  agree(world, [&] {
    if (world.rank() != 0) return;
    const std::string how =
        fmt::format("Measured by longspan doctor --calibrate with {} rank{} on {}{}.", world.size(),
                    world.size() == 1 ? "" : "s", nodes.front(),
                    nodes.front() == nodes.back()
                        ? world.size() == 1
                              ? "; links: a copy within memory, run it under mpirun to measure them"
                              : "; links between nodes: as inside"
                        : " and other nodes");
    const std::string text = machine_ini(machine, how), fresh = target + ".tmp";
    parse_machine(text, target);
    std::ofstream file(fresh, std::ios::trunc);
    file << text;
    file.close();
    std::error_code error;
    if (file) fs::rename(fresh, target, error);
    if (!file || error)
      fail("{}: cannot be written: {}", target, error ? error.message() : std::strerror(errno));
  });
  return target;
}

}  // namespace longspan::launcher
