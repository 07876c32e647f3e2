/// longspan: argv to a subcommand, every error to one line and an exit status. The only place that ends the process.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "launcher/command.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "parallel/abort.hpp"
#include "parallel/log.hpp"
#include "slurm/environment.hpp"

namespace {

using namespace longspan;

ExitStatus run(const std::vector<std::string>& words) {
  if (words.empty()) fail_usage("which command? longspan --help lists them");
  const std::string& name = words[0];
  if (name == "--help" || name == "-h" || name == "help") {
    fmt::print("{}\n", launcher::overview());
    return ExitStatus::kDone;
  }
  if (name == "--version") {
    fmt::print("{}\n", launcher::version_line());
    return ExitStatus::kDone;
  }
  std::vector<std::string> known;
  for (const auto& command : launcher::commands()) {
    if (command.name == name) return command.run({words.begin() + 1, words.end()});
    known.emplace_back(command.name);
  }
  const std::string near = launcher::nearest(name, known);
  fail_usage("there is no command '{}'{}", name, near.empty() ? ": longspan --help lists them" : ": did you mean " + near + "?");
}

/// Each problem on a line of its own.
void report(const std::string& message) {
  std::istringstream lines(message);
  for (std::string line; std::getline(lines, line);) fmt::print(stderr, "longspan: {}\n", line);
}

/// An error that is this process's own, as far as it knows.
ExitStatus end_alone(const std::string& message, ExitStatus status) {
  if (parallel::has_peers()) parallel::abort_job(message, status);
  // Wrong usage is the same on every rank, before MPI has told them who they are: one says it.
  if (status != ExitStatus::kUsage || slurm::launcher_rank() == 0) report(message);
  return status;
}

ExitStatus run_to_status(const std::vector<std::string>& words) {
  try {
    return run(words);
  } catch (const AgreedError& e) {
    if (log::rank() == 0) report(e.what());
    parallel::leave_together();
    return e.status();
  } catch (const Error& e) {
    return end_alone(e.what(), e.status());
  } catch (const std::bad_alloc&) {
    return end_alone("out of memory: more ranks, memory.keep=block or a shorter data.sequence-length need less", ExitStatus::kFailed);
  } catch (const std::exception& e) {
    return end_alone(e.what(), ExitStatus::kFailed);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const ExitStatus status = run_to_status({argv + 1, argv + argc});
  // mpirun kills all ranks as soon as one has left with a status other than 0: the one that has something to say goes first.
  if (status != ExitStatus::kDone && slurm::launcher_rank() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  return static_cast<int>(status);
}
