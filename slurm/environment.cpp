#include "slurm/environment.hpp"

#include <cstdlib>
#include <initializer_list>

namespace longspan::slurm {

std::optional<SlurmJob> current_job() {
  const char* id = std::getenv("SLURM_JOB_ID");
  if (id == nullptr) return std::nullopt;
  const char* nodes = std::getenv("SLURM_JOB_NODELIST");
  const char* restarts = std::getenv("SLURM_RESTART_COUNT");
  return SlurmJob{id, nodes ? nodes : "", restarts ? std::atoi(restarts) : 0};
}

std::string job_address() {
  const char* const array = std::getenv("SLURM_ARRAY_JOB_ID");
  const char* const task = std::getenv("SLURM_ARRAY_TASK_ID");
  if (array != nullptr && task != nullptr) return std::string(array) + "_" + task;
  const char* const id = std::getenv("SLURM_JOB_ID");
  return id == nullptr ? "" : id;
}

bool started_by_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"})
    if (std::getenv(name) != nullptr) return true;
  return false;
}

int launcher_rank() {
  // Not SLURM_PROCID: under mpirun it is the rank of mpirun's daemon.
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"})
    if (const char* rank = std::getenv(name)) return std::atoi(rank);
  // srun without a plugin for MPI gives no other.
  return launched_world().rank;
}

LaunchedWorld launched_world() {
  const auto number = [](const char* name) {
    const char* text = std::getenv(name);
    return text == nullptr ? 0 : std::atoi(text);
  };
  // Under mpirun in an allocation the step is that of mpirun's daemons: mpirun is asked first.
  if (const int size = number("OMPI_COMM_WORLD_SIZE"); size > 0)
    return {Launcher::kMpirun, "mpirun", size, number("OMPI_COMM_WORLD_RANK"), true};
  if (const int size = number("PMI_SIZE"); size > 0)
    return {Launcher::kPmi, "the launcher", size, number("PMI_RANK"), true};
  if (std::getenv("SLURM_STEP_ID") == nullptr || std::getenv("SLURM_PROCID") == nullptr) return {};
  int size = number("SLURM_STEP_NUM_TASKS");
  if (size == 0) size = number("SLURM_NTASKS");
  const bool known = std::getenv("PMIX_RANK") != nullptr || std::getenv("PMI_RANK") != nullptr;
  return {Launcher::kSrun, "srun", size, number("SLURM_PROCID"), known};
}

}  // namespace longspan::slurm
