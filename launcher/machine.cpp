#include "launcher/machine.hpp"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <set>
#include <string_view>
#include <thread>

#include "io/hdf5.hpp"
#include "longspan_revision.hpp"
#include "model/kernels/version.hpp"
#include "parallel/host_copy.hpp"
#include "parallel/random.hpp"
#include "parallel/version.hpp"

namespace longspan::launcher {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0)
    return static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, CPU_COUNT(&set));
}

AffinityMasks affinity_masks(const Communicator& node) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  sched_getaffinity(0, sizeof mask, &mask);
  const std::string_view bytes(reinterpret_cast<const char*>(&mask), sizeof mask);
  const auto mine = static_cast<std::int64_t>(hash_name(bytes) >> 1);
  const auto all = node.all_gather(mine);
  return {static_cast<int>(std::set(all.begin(), all.end()).size()),
          static_cast<int>(std::count(all.begin(), all.end(), mine))};
}

int set_threads(int requested, const Communicator& world) {
  // Ranks with the same mask share its cores; a rank that was bound to cores of its own has them
  // all.
  const int sharers = affinity_masks(world.split_by_node()).sharers;
  const int threads = requested > 0 ? requested : std::max(1, available_cores() / sharers);
  omp_set_num_threads(threads);
  return threads;
}

double measure_peak_flops(const model::Backend& backend, bool bf16, const Communicator& world) {
  constexpr std::int64_t kSize = 1024;
  auto a = Buffer<float>(backend.device, kSize, kSize),
       b = Buffer<float>(backend.device, kSize, kSize),
       c = Buffer<float>(backend.device, kSize, kSize);
  for (const Buffer<float>* operand : {&a, &b})
    write_from_host(backend.device, backend.stream, operand->view(),
                    [](View<float> x) { std::fill(x.begin(), x.end(), 1.0f); });
  model::GemmArgs args;
  args.m = args.n = args.k = args.lda = args.ldb = args.ldc = kSize;
  args.a = a.data(), args.b = b.data(), args.c = c.data();
  args.trans_b = true;
  args.bf16_operands = bf16;
  backend.kernels.gemm(args, backend.stream);  // compiles the kernel
  backend.stream.synchronize();
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    world.barrier();
    const auto begin = std::chrono::steady_clock::now();
    backend.kernels.gemm(args, backend.stream);
    backend.stream.synchronize();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, world.all_reduce_sum(2.0 * kSize * kSize * kSize / seconds.count()));
  }
  for (Buffer<float>* buffer : {&a, &b, &c}) buffer->clear();
  backend.device.reset_peak();  // these buffers are not part of what a run needs
  return best;
}

namespace {

std::int64_t status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(key, 0) == 0) return std::stoll(line.substr(key.size())) * 1024;
  return 0;
}

}  // namespace

std::int64_t peak_resident_bytes() {
  return status_bytes("VmHWM:");
}

std::int64_t resident_bytes() {
  return status_bytes("VmRSS:");
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t at = line.find_first_not_of(" \t", line.find(':') + 1);
    if (at != std::string::npos) return line.substr(at);
  }
  return "unknown";
}

std::string version_line() {
  return fmt::format("longspan {} ({}), {}, {}, {}, g++ {}", LONGSPAN_VERSION, LONGSPAN_REVISION,
                     parallel::mpi_version(), model::math_library_version(),
                     fmt::format("HDF5 {}", io::hdf5::version()), __VERSION__);
}

}  // namespace longspan::launcher
