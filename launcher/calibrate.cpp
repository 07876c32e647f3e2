#include "launcher/calibrate.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "launcher/calibrate_rates.hpp"
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
  const Communicator node = world.split_by_node();
  MachineDescription m;
  m.name = "local";
  m.shares_cores = true;
  m.ranks_per_node = static_cast<int>(world.all_reduce_max(std::int64_t{node.size()}));
  const Cores cores = usable_cores();
  m.cores = cores.count * affinity_masks(node).different;
  for (const bool bf16 : {false, true})
    // What `train` calls 100 % of MFU, of a node.
    (bf16 ? m.bf16 : m.fp32).peak_flops =
        measure_peak_flops(backend, bf16, world) * m.ranks_per_node / world.size();
  measure_rates(m, backend, world, node);
  m.memory_bytes = static_cast<double>(world.all_reduce_min(node_memory().bytes));
  const LinkResult links = measure_links(world, node);
  m.inside = links.inside, m.between = links.between;
  correct_by_steps(m, world, node);
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
