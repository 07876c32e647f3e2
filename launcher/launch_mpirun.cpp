/// Which words and which environment start the ranks: on this machine, on hosts, in an allocation.
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>

#include "launcher/launch.hpp"
#include "launcher/run_record.hpp"
#include "launcher/text.hpp"

namespace longspan::launcher {

Cores usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof mask, &mask) != 0) return {1, false};
  // Hyperthreads of one core name the same siblings; mpirun counts and binds cores.
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::string siblings;
    std::ifstream file(
        fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return {static_cast<int>(cores.size()), CPU_COUNT(&mask) >= ::sysconf(_SC_NPROCESSORS_ONLN)};
}

namespace {

void place_on_this_machine(int ranks, const Places& places, MpirunCommand& command) {
  std::vector<std::string>& words = command.words;
  // Shared memory is all that one node needs; probing the fabrics costs 0.2 s.
  command.environment.emplace_back("OMPI_MCA_pml", "ob1");
  command.environment.emplace_back("OMPI_MCA_btl", "self,vader");
  const Cores& cores = places.cores;
  if (ranks > cores.count) {
    words.emplace_back("--oversubscribe");
    // Where all cores get as many, ranks that wander from one to the other only lose time: with two
    // on each of two cores a step over a 1 x 2 x 2 mesh takes 0.57 s instead of 0.69.
    if (cores.all && ranks % cores.count == 0)
      words.insert(words.end(), {"--map-by", "core", "--bind-to", "core:overload-allowed"});
    else
      words.insert(words.end(), {"--bind-to", "none"});
    command.environment.emplace_back("OMPI_MCA_mpi_yield_when_idle", "1");
  } else if (places.slots > 0 && ranks > places.slots) {
    // The allocation has the cores, but was asked for fewer tasks.
    words.insert(words.end(), {"--oversubscribe", "--bind-to", "none"});
  } else if (cores.all) {
    // The default binds a rank, and all of its threads, to one core.
    words.insert(words.end(),
                 {"--map-by", fmt::format("slot:PE={}", cores.count / ranks), "--bind-to", "core"});
  } else {
    // mpirun does not know the mask (taskset, cpusets) and would bind outside of it; unbound
    // ranks inherit it.
    words.insert(words.end(), {"--bind-to", "none"});
  }
}

void place_on_nodes(int ranks, const Places& places, MpirunCommand& command) {
  std::vector<std::string>& words = command.words;
  if (places.slots > 0 && ranks > places.slots) words.emplace_back("--oversubscribe");
  // mpirun's default for one or two ranks is a core for a rank and all of its threads. Unbound
  // ranks share the node's cores out among themselves (run.threads=0).
  command.environment.emplace_back("OMPI_MCA_hwloc_base_binding_policy", "none");
  // ssh carries no environment; mpirun itself only carries OMPI_*.
  for (const std::string& name : places.forwarded) words.insert(words.end(), {"-x", name});
}

}  // namespace

std::vector<std::string> variables_for_other_hosts() {
  std::vector<std::string> names = {kLaunchVariable, kRestartVariable};
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string name(*entry, std::strcspn(*entry, "="));
    const auto begins = [&](const char* with) { return name.starts_with(with); };
    if (begins("OMP_") || begins("DNNL_") || begins("ONEDNN_") || begins("HDF5_") ||
        name == "LD_LIBRARY_PATH")
      names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

MpirunCommand mpirun_command(int ranks, const Places& places, const std::string& program,
                             const std::vector<std::string>& arguments) {
  MpirunCommand command;
  std::vector<std::string>& words = command.words;
  words = {"mpirun"};
  if (places.root) words.emplace_back("--allow-run-as-root");
  // Our ranks leave together, after MPI_Finalize: nothing is gained by 2 s between SIGTERM and
  // SIGKILL.
  words.insert(words.end(), {"--mca", "odls_base_sigkill_timeout", "0"});
  // Who said it: RankOutput takes the tags off again.
  words.emplace_back("--tag-output");
  // Open MPI's handlers of fatal signals write a stack trace from inside them; after a corrupted
  // heap that was seen to hang for ever. Without them a rank dies at once, and mpirun tells us of
  // what.
  command.environment = {{"OMPI_MCA_opal_signal", ""}};
  if (!places.hostfile.empty()) words.insert(words.end(), {"--hostfile", places.hostfile});
  if (places.several_nodes)
    place_on_nodes(ranks, places, command);
  else
    place_on_this_machine(ranks, places, command);
  words.insert(words.end(), {"-n", std::to_string(ranks), program});
  words.insert(words.end(), arguments.begin(), arguments.end());
  return command;
}

std::string shell_text(const MpirunCommand& command) {
  std::string text;
  for (const auto& [name, value] : command.environment)
    text += name + "=" + (value.empty() ? "" : shell_quoted(value)) + " ";
  for (const std::string& word : command.words) text += shell_quoted(word) + " ";
  text.pop_back();
  return text;
}

}  // namespace longspan::launcher
