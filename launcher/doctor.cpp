/// `longspan doctor`: alone, under mpirun, or in an allocation.
#include "launcher/doctor.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "launcher/arguments.hpp"
#include "launcher/calibrate.hpp"
#include "launcher/command.hpp"
#include "launcher/machine.hpp"
#include "parallel/log.hpp"
#include "parallel/version.hpp"
#include "slurm/environment.hpp"

namespace longspan::launcher {
namespace {

void append(Findings& all, Findings more) {
  std::move(more.begin(), more.end(), std::back_inserter(all));
}

Findings check_mpi() {
  return {{"MPI", "library", Health::kGood,
           fmt::format("{}, {}", parallel::mpi_version(), parallel::mpi_thread_level())},
          {"MPI", "device pointers", Health::kInfo,
           parallel::mpi_cuda_aware() ? "taken (CUDA-aware)" : "not taken (not CUDA-aware)"}};
}

}  // namespace

ExitStatus doctor_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "doctor",
      "says what this machine and this allocation offer and what is wrong with it: software, "
      "nodes, "
      "run directory, Slurm, GPUs, and the speed of every rank and link. Alone it looks at this "
      "machine; under mpirun or srun at all nodes of the job. Exit status 1 if something is bad",
      {{"directory", "DIR", "where runs will write", "runs"},
       {"calibrate", "",
        "measure the rates that `longspan plan --machine local` takes, write them"},
       {"output", "FILE", "where --calibrate writes; without it local.ini in the user's folder"},
       {"json", "", "one JSON object instead of text"}},
      "mpirun -n 2 longspan doctor");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.positional().empty())
    fail_usage("doctor: '{}' is not expected: the folder to look at is given as --directory DIR",
               args.positional()[0]);

  if (args.has("output") && !args.has("calibrate"))
    fail_usage("doctor: --output {} says where --calibrate writes: give that too",
               args.text("output"));

  const MpiRuntime mpi;
  const Communicator world = Communicator::world();
  log::set_rank(world.rank());
  set_threads(0, world);
  if (args.has("calibrate")) {
    log::info("measured and wrote {}", calibrate(world, args.text("output")));
    return ExitStatus::kDone;
  }
  const std::vector<std::string> nodes = parallel::node_names(world);
  const Communicator node = world.split_by_node();

  Findings mine;
  if (node.rank() == 0) {  // once a node
    append(mine, check_software());
    append(mine, check_mpi());
    append(mine, check_node(node.size()));
    append(mine, check_gpu());
  }
  if (world.rank() == 0) append(mine, check_slurm(world.size()));
  append(mine, check_run_directory(args.text("directory"), world));
  append(mine, check_ranks(world, nodes));

  const auto texts = world.gather(findings_to_json(mine), 0);
  std::int64_t bad = 0;
  if (world.rank() == 0) {
    std::vector<std::pair<std::string, Findings>> by_node;
    for (std::size_t rank = 0; rank < texts.size(); ++rank)
      if (auto findings = findings_from_json(texts[rank]); !findings.empty())
        by_node.emplace_back(nodes[rank], std::move(findings));
    const auto merged = merge_findings(by_node);
    std::vector<std::string> distinct;
    for (const auto& [name, findings] : by_node)
      if (distinct.empty() || distinct.back() != name) distinct.push_back(name);
    // mpirun gives its ranks a terminal even where it writes into a pipe itself.
    const bool colour = !slurm::started_by_launcher() && ::isatty(STDOUT_FILENO) == 1 &&
                        std::getenv("NO_COLOR") == nullptr;
    if (args.has("json")) {
      log::line(doctor_json(merged, world.size(), distinct));
    } else {
      log::line(fmt::format("{} rank{} on {} node{}\n", world.size(), world.size() == 1 ? "" : "s",
                            distinct.size(), distinct.size() == 1 ? "" : "s"));
      log::line(doctor_text(merged, colour));
    }
    bad = std::count_if(merged.begin(), merged.end(),
                        [](const PlacedFinding& p) { return p.finding.health == Health::kBad; });
  }
  return world.broadcast(bad, 0) > 0 ? ExitStatus::kFailed : ExitStatus::kDone;
}

}  // namespace longspan::launcher
