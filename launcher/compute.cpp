#include "launcher/compute.hpp"

#include <algorithm>
#include <optional>

#include "launcher/gpu.hpp"
#include "parallel/agree.hpp"
#include "parallel/error.hpp"
#include "parallel/watchdog.hpp"

namespace longspan::launcher {
namespace {

/// A rank's GPU, or why it has none.
struct Found {
  std::shared_ptr<model::GpuBackend> gpu;
  std::string name, line, pci_bus;
  int ranks_on_gpu = 1;
  std::string problem = {};
  ExitStatus status = ExitStatus::kFailed;
};

/// When a collective between GPUs is given up: the watchdog, which can name the rank that stops the
/// run, speaks first.
double deadline_of(const RunSettings& run) {
  const auto timeout = parallel::parse_hang_timeout(run.hang_timeout);
  if (!timeout || !timeout->enabled) return 0;
  return timeout->seconds > 0 ? 2 * timeout->seconds + 10
                              : parallel::patient_limit(parallel::hang_limit(*timeout, {}));
}

/// Collective over `node`: all its ranks look together, and compare what they take.
Found find_gpu(const RunSettings& run, const Communicator& node) {
  Found found;
  const auto attempt = [&](auto&& work) {
    if (!found.problem.empty()) return;
    try {
      work();
    } catch (const Error& error) {
      found.problem = error.what();
      found.status = error.status();
    }
  };
  model::GpuPlugin* plugin = nullptr;
  model::GpuDescription gpu;
  model::GpuOptions options;
  int count = 0;
  attempt([&] {
    if (run.device == "auto" && !gpu_may_be_here()) fail("no GPU driver here");
    plugin = &open_gpu_plugin();
    count = plugin->gpu_count();
    options = {gpu_of(node.rank(), count), run.deterministic, run.communication, run.share_gpu,
               deadline_of(run)};
    gpu = plugin->describe(options.device);
  });
  const std::vector<std::int64_t> taken =
      node.all_gather(found.problem.empty() ? gpu_identity(gpu) : std::int64_t{-1} - node.rank());
  attempt([&] {
    check_gpu_is_own(taken, count, run.share_gpu);
    found.ranks_on_gpu =
        static_cast<int>(std::count(taken.begin(), taken.end(), gpu_identity(gpu)));
    found.gpu = plugin->open(options);
    found.name = gpu.name;
    found.pci_bus = gpu.pci_bus;
    found.line = fmt::format("device: {} (GPU {} of {} on the first node); {}; {}", to_string(gpu),
                             options.device, count, plugin->versions(), found.gpu->description());
  });
  return found;
}

Compute on_cpu(std::string line) {
  Compute compute = cpu_compute();
  compute.line = std::move(line);
  return compute;
}

}  // namespace

Compute cpu_compute() {
  return {model::cpu_backend(), make_mpi_group, "cpu", "device: cpu"};
}

Compute open_compute(const RunSettings& run, const Communicator& world) {
  if (run.device == "cpu") return cpu_compute();
  std::optional<Communicator> node;
  if (world.size() > 1) node.emplace(world.split_by_node());
  Found found = find_gpu(run, node ? *node : world);
  if (run.device == "cuda")
    agree(world, [&] {
      if (!found.problem.empty()) throw Error("run.device=cuda: " + found.problem, found.status);
    });
  // One rank without a GPU: all compute on their processors.
  const std::int64_t first =
      world.all_reduce_min(std::int64_t{found.problem.empty() ? world.size() : world.rank()});
  if (first < world.size())
    return on_cpu(fmt::format("device: cpu (run.device=auto: {})",
                              world.broadcast(found.problem, static_cast<int>(first))));
  model::GpuBackend& gpu = *found.gpu;
  return {gpu.backend(),      [&gpu](const Communicator& comm) { return gpu.make_group(comm); },
          found.name,         found.line,
          found.pci_bus,      &gpu,
          found.ranks_on_gpu, [&gpu] { return gpu.make_host_offload(); },
          found.gpu};
}

}  // namespace longspan::launcher
