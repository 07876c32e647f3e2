/// What doctor measures, and where it asks.
#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "launcher/compute.hpp"
#include "launcher/doctor.hpp"
#include "launcher/gpu.hpp"
#include "launcher/machine.hpp"
#include "launcher/memory_plan.hpp"
#include "model/kernels/kernels.hpp"
#include "model/kernels/version.hpp"
#include "parallel/agree.hpp"
#include "parallel/version.hpp"
#include "slurm/environment.hpp"
#include "slurm/process.hpp"

namespace longspan::launcher {
namespace {

/// What a command says, where it is installed; nothing where it is not.
std::optional<std::string> said_by(const std::vector<std::string>& command) {
  const slurm::ProcessOutcome outcome = slurm::run_process(command, "", std::chrono::seconds(10));
  if (!outcome.found) return std::nullopt;
  return outcome.out + outcome.err;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// "MemAvailable" of /proc/meminfo, bytes.
std::int64_t memory_info(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key + ":"))
      return std::strtoll(line.c_str() + key.size() + 1, nullptr, 10) * 1024;
  return 0;
}

std::int64_t limit_of(int resource) {
  rlimit limit{};
  ::getrlimit(static_cast<__rlimit_resource_t>(resource), &limit);
  return limit.rlim_cur == RLIM_INFINITY ? -1 : static_cast<std::int64_t>(limit.rlim_cur);
}

/// A library opened for the time of a check; functions by name.
class Library {
 public:
  explicit Library(const char* name) : handle_(::dlopen(name, RTLD_NOW | RTLD_LOCAL)) {}
  ~Library() {
    if (handle_ != nullptr) ::dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  explicit operator bool() const { return handle_ != nullptr; }
  template <class Function>
  Function* function(const char* name) const {
    return reinterpret_cast<Function*>(::dlsym(handle_, name));
  }

 private:
  void* handle_;
};

}  // namespace

Findings check_software() {
  Findings findings;
  const auto add = [&](const char* subject, Health health, std::string found,
                       std::string remedy = "") {
    findings.push_back({"software", subject, health, std::move(found), std::move(remedy)});
  };
  add("program", Health::kInfo, version_line());
  if (model::vectorised_well())
    add("instruction set", Health::kGood, model::instruction_set_line());
  else
    add("instruction set", Health::kWarning, model::instruction_set_line(),
        "below AVX2 training is many times slower: choose other nodes (slurm.constraint)");
  add("HDF5", Health::kGood, io::hdf5::version());
  return findings;
}

Findings check_node(int ranks_here) {
  NodeFacts facts;
  facts.machine_cores = ::get_nprocs();
  facts.usable_cores = available_cores();
  // Ranks that were bound have masks of their own; without binding all share all.
  facts.sharing_ranks = facts.usable_cores < facts.machine_cores ? 1 : ranks_here;
  facts.memory_bytes = memory_info("MemTotal");
  facts.available_bytes = memory_info("MemAvailable");
  facts.group_limit_bytes = node_memory().bytes;
  facts.shm_free_bytes = io::is_directory("/dev/shm") ? io::free_bytes("/dev/shm") : 0;
  facts.file_size_limit = limit_of(RLIMIT_FSIZE);
  facts.address_limit = limit_of(RLIMIT_AS);
  facts.locked_limit = limit_of(RLIMIT_MEMLOCK);
  const std::int64_t files = limit_of(RLIMIT_NOFILE);
  facts.open_files = files < 0 ? std::int64_t{1} << 40 : files;
  facts.processes = limit_of(RLIMIT_NPROC);
  facts.infiniband = !io::list_directory("/sys/class/infiniband").empty();
  facts.governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  return judge_node(facts, ranks_here);
}

namespace {

/// The plug-in and what it can use: what run.device=cuda would get.
Findings check_gpu_plugin() {
  const auto finding = [](Health health, std::string found, std::string remedy = "") {
    return Finding{"GPU", "plug-in", health, std::move(found), std::move(remedy)};
  };
  const bool needed = gpu_may_be_here();
  try {
    model::GpuPlugin& plugin = open_gpu_plugin();
    const std::string what = gpu_plugin_path() + ", " + plugin.versions();
    if (!needed) return {finding(Health::kInfo, what)};
    try {
      Findings findings = {finding(Health::kGood, what)};
      const int count = plugin.gpu_count();
      for (int i = 0; i < count; ++i) {
        const model::GpuDescription gpu = plugin.describe(i);
        const bool usable = gpu.major >= 8;
        findings.push_back({"GPU", fmt::format("device {}", i),
                            usable ? Health::kGood : Health::kWarning, to_string(gpu),
                            usable ? "" : "the kernels need compute capability 8.0 or later"});
      }
      return findings;
    } catch (const Error& error) {
      return {finding(Health::kWarning, what + "; " + error.what(), "training runs on the CPU")};
    }
  } catch (const Error& error) {
    return {finding(needed ? Health::kWarning : Health::kInfo, error.what(),
                    needed ? "training runs on the CPU" : "")};
  }
}

/// What the system says of its GPUs, whether or not the plug-in can use them.
Findings check_driver() {
  const std::string topic = "GPU";
  Findings findings;
  const Library driver("libcuda.so.1");
  auto* initialize = driver ? driver.function<int(unsigned)>("cuInit") : nullptr;
  if (initialize == nullptr)
    return {{topic, "driver", Health::kInfo, "none: training runs on the CPU"}};
  if (const int code = initialize(0); code != 0) {
    const char* why = nullptr;
    if (auto* name = driver.function<int(int, const char**)>("cuGetErrorString")) name(code, &why);
    return {{topic, "driver", Health::kWarning,
             fmt::format("cuInit: {} ({})", why ? why : "unknown error", code),
             "nvidia-smi says more; training runs on the CPU"}};
  }
  int version = 0, count = 0;
  if (auto* f = driver.function<int(int*)>("cuDriverGetVersion")) f(&version);
  if (auto* f = driver.function<int(int*)>("cuDeviceGetCount")) f(&count);
  findings.push_back({topic, "driver", count > 0 ? Health::kGood : Health::kInfo,
                      fmt::format("CUDA {}.{}, {} GPU{}", version / 1000, version % 1000 / 10,
                                  count, count == 1 ? "" : "s")});
  const Library nccl("libnccl.so.2");
  int nccl_version = 0;
  if (auto* f = nccl ? nccl.function<int(int*)>("ncclGetVersion") : nullptr) f(&nccl_version);
  findings.push_back({topic, "NCCL", Health::kInfo,
                      nccl_version == 0
                          ? "none"
                          : fmt::format("{}.{}.{}", nccl_version / 10000, nccl_version / 100 % 100,
                                        nccl_version % 100)});
  return findings;
}

}  // namespace

Findings check_gpu() {
  Findings findings = check_driver();
  for (Finding& finding : check_gpu_plugin()) findings.push_back(std::move(finding));
  return findings;
}

Findings check_slurm(int ranks) {
  Findings findings;
  const auto add = [&](const char* topic, const char* subject, Health health, std::string found,
                       std::string remedy = "") {
    findings.push_back({topic, subject, health, std::move(found), std::move(remedy)});
  };
  if (const auto parts = said_by({"ompi_info", "--parsable"})) {
    const bool ucx = parts->find("mca:pml:ucx:") != std::string::npos;
    const bool pmix = parts->find("mca:pmix:ext") != std::string::npos ||
                      parts->find("mca:pmix:pmix") != std::string::npos;
    const bool slurm = parts->find("mca:plm:slurm") != std::string::npos;
    add("MPI", "components", Health::kInfo,
        fmt::format("UCX: {}, PMIx: {}, starts ranks through Slurm: {}", ucx ? "yes" : "no",
                    pmix ? "yes" : "no", slurm ? "yes" : "no"));
  }
  const auto job = slurm::current_job();
  if (const auto said = said_by({"sbatch", "--version"}); !said) {
    add("Slurm", "commands", Health::kInfo, "none: longspan launch starts ranks here");
  } else {
    // "slurm 23.11.4", or "slurm-wlm 22.05.8" of Debian. Without a cluster the commands complain
    // before they answer.
    std::string version = "there";
    std::istringstream lines(*said);
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("slurm")) version = line;
    const std::string kinds = said_by({"srun", "--mpi=list"}).value_or("");
    if (kinds.find("MPI plugin types") == std::string::npos) {
      add("Slurm", "commands", Health::kInfo,
          "installed, but no cluster answers: longspan launch starts ranks here");
    } else {
      add("Slurm", "commands", Health::kGood, version);
      if (kinds.find("pmix") != std::string::npos)
        add("Slurm", "srun", Health::kGood, "starts MPI ranks: --mpi=pmix is offered");
      else
        add("Slurm", "srun", Health::kWarning, "--mpi=pmix is not offered",
            "ranks would be worlds of one: slurm.starter = mpirun");
    }
  }
  if (!job) return findings;
  add("Slurm", "this job", Health::kInfo,
      fmt::format("{} on {}, restart {}", job->id, job->node_list, job->restart_count));
  const char* tasks_text = std::getenv("SLURM_NTASKS");
  const int tasks = tasks_text ? std::atoi(tasks_text) : 0;
  if (tasks > 1 && ranks == 1)
    add("Slurm", "ranks", slurm::started_by_launcher() ? Health::kBad : Health::kInfo,
        fmt::format("{} tasks in the job, one rank here", tasks),
        slurm::started_by_launcher()
            ? "each task is a world of one: srun --mpi=pmix, or mpirun"
            : "start `srun --mpi=pmix longspan doctor` to measure the links");
  return findings;
}

Findings check_run_directory(const std::string& wanted, const Communicator& world) {
  const std::string folder = io::existing_parent(wanted);
  const Communicator node = world.split_by_node();
  const auto nodes = static_cast<int>(world.all_reduce_sum(std::int64_t{node.rank() == 0}));
  Findings findings;
  std::string failure;
  if (world.rank() == 0) {
    try {
      findings = judge_file_system(folder, io::probe_file_system(folder), nodes);
    } catch (const Error& e) {
      findings = {{"run directory " + folder, "writing", Health::kBad, e.what(),
                   "choose a run.directory that this user may write to"}};
      failure = e.what();
    }
  }
  if (nodes == 1 || !world.broadcast(failure, 0).empty()) return findings;

  // What rank 0 writes, other nodes must see, and what it locks, they must find locked.
  const std::string path =
      fmt::format("{}/.doctor-{}", folder, world.broadcast(std::int64_t{::getpid()}, 0));
  const std::string token = fmt::format("{}", world.broadcast(std::int64_t{::time(nullptr)}, 0));
  io::Descriptor lock;
  if (world.rank() == 0) {
    std::ofstream(path) << token << std::flush;
    lock = io::Descriptor(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (lock) ::flock(lock.get(), LOCK_EX | LOCK_NB);
  }
  world.barrier();
  bool seen = true, locked = true;
  if (node.rank() == 0 && world.rank() != 0) {
    for (int i = 0; i < 50 && (seen = first_line(path) == token, !seen); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const io::Descriptor mine(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    locked = mine && ::flock(mine.get(), LOCK_EX | LOCK_NB) != 0;
  }
  const std::string topic = "run directory " + folder;
  if (node.rank() == 0) {
    if (!seen)
      findings.push_back(
          {topic, "shared", Health::kBad, "the first node's file is not seen here",
           "all nodes must see one run directory: choose one on a shared file system"});
    else if (!locked)
      findings.push_back({topic, "shared", Health::kBad, "the first node's lock is not seen here",
                          "two runs could write into one directory unnoticed: mount with flock"});
    else
      findings.push_back(
          {topic, "shared", Health::kGood, "every node sees the same files and the same locks"});
  }
  world.barrier();
  if (world.rank() == 0) io::remove_path(path);
  return findings;
}

Findings check_ranks(const Communicator& world, const std::vector<std::string>& nodes) {
  world.barrier();
  // Each rank by itself, all at the same time: as in a step.
  const double mine = measure_peak_flops(cpu_compute().backend, false, Communicator::self());
  const std::vector<double> flops = world.all_gather(mine);
  const auto links = parallel::probe_links(world);
  const auto ahead = parallel::probe_clocks(world);
  if (world.rank() != 0) return {};
  Findings findings = judge_speeds(flops, nodes);
  for (Finding& f : judge_links(links, nodes)) findings.push_back(std::move(f));
  if (world.size() > 1)
    for (Finding& f : judge_clocks(ahead, nodes)) findings.push_back(std::move(f));
  return findings;
}

}  // namespace longspan::launcher
