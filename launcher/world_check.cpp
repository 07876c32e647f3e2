#include "launcher/world_check.hpp"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "parallel/agree.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

constexpr std::size_t kMostDifferences = 4;

/// Finds NT_GNU_BUILD_ID among the notes of one segment.
std::string build_id_in(const unsigned char* notes, std::size_t size) {
  const auto padded = [](std::size_t n) { return (n + 3) / 4 * 4; };
  std::size_t at = 0;
  while (at + sizeof(ElfW(Nhdr)) <= size) {
    ElfW(Nhdr) header;
    std::memcpy(&header, notes + at, sizeof header);
    const std::size_t name = at + sizeof header, content = name + padded(header.n_namesz),
                      end = content + padded(header.n_descsz);
    if (end > size) break;
    if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == 4 &&
        std::memcmp(notes + name, "GNU", 4) == 0) {
      std::string text;
      for (std::size_t i = 0; i < header.n_descsz; ++i)
        text += fmt::format("{:02x}", notes[content + i]);
      return text;
    }
    at = end;
  }
  return "";
}

/// The first object is the program itself.
int look_for_build_id(dl_phdr_info* info, std::size_t, void* found) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const std::string id = build_id_in(
        reinterpret_cast<const unsigned char*>(info->dlpi_addr + segment.p_vaddr), segment.p_memsz);
    if (!id.empty()) *static_cast<std::string*>(found) = id;
  }
  return 1;
}

/// Values with no line break in between.
std::string pack(const RankFacts& facts) {
  std::string text;
  for (const auto& [name, value] : facts) text += name + '\0' + value + '\0';
  return text;
}

RankFacts unpack(const std::string& text) {
  RankFacts facts;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t middle = text.find('\0', at), end = text.find('\0', middle + 1);
    facts.emplace_back(text.substr(at, middle - at), text.substr(middle + 1, end - middle - 1));
    at = end + 1;
  }
  return facts;
}

}  // namespace

std::string world_problem(const slurm::LaunchedWorld& launched, int mpi_size) {
  if (launched.size == 0 || launched.size == mpi_size) return "";
  using slurm::Launcher;
  std::string text = fmt::format("{} has started {} rank{} but MPI ", launched.name, launched.size,
                                 launched.size == 1 ? "" : "s");
  text += mpi_size == 0   ? "has no way to know of them"
          : mpi_size == 1 ? "sees this one alone"
                          : fmt::format("sees {}", mpi_size);
  text += fmt::format(": {} worlds would train beside each other; ", launched.size);
  switch (launched.starter) {
    case Launcher::kSrun:
      text +=
          "srun and this MPI library share no process manager: start with srun --mpi=pmix "
          "(`srun --mpi=list` shows what this Slurm has), or with mpirun in the allocation, which "
          "needs none";
      break;
    case Launcher::kPmi:
      text +=
          "the launcher speaks PMI-1 or PMI-2 (MPICH's or Intel's mpiexec, srun --mpi=pmi2) and "
          "this "
          "MPI library needs PMIx: use the mpirun that belongs to it, or srun --mpi=pmix";
      break;
    default:
      text +=
          "mpirun belongs to another MPI library than this program: use the mpirun of the "
          "installation that `longspan --version` names";
  }
  return text;
}

slurm::LaunchedWorld check_world_before_mpi() {
  const slurm::LaunchedWorld launched = slurm::launched_world();
  if (launched.starter == slurm::Launcher::kSrun && launched.size > 1 && !launched.mpi_knows) {
    log::set_rank(launched.rank);
    throw AgreedError(world_problem(launched, 0), ExitStatus::kUsage);
  }
  return launched;
}

void check_world_size(const slurm::LaunchedWorld& launched, int mpi_size) {
  const std::string problem = world_problem(launched, mpi_size);
  if (problem.empty()) return;
  log::set_rank(launched.rank);  // every process is rank 0 of its own world
  throw AgreedError(problem, ExitStatus::kUsage);
}

RankFacts rank_facts(const RunConfig& config, const std::string& dataset_uuid,
                     std::int64_t dataset_tokens) {
  RankFacts facts = {{"program", version_line()},
                     {"program build", build_id()},
                     {"dataset at " + config.data.path, dataset_uuid},
                     {"tokens in " + config.data.path, std::to_string(dataset_tokens)}};
  for (const OptionDescription& option : describe_options(config))
    facts.emplace_back(option.name, option.value);
  return facts;
}

std::string differences(const RankFacts& mine, const RankFacts& first) {
  std::string text;
  std::size_t count = 0;
  for (std::size_t i = 0; i < std::max(mine.size(), first.size()); ++i) {
    const std::string name = i < mine.size() ? mine[i].first : first[i].first;
    const std::string here = i < mine.size() ? mine[i].second : "nothing",
                      there = i < first.size() ? first[i].second : "nothing";
    if (here == there && i < mine.size() && i < first.size() && name == first[i].first) continue;
    if (++count > kMostDifferences) continue;
    text += fmt::format("{}{}={} (rank 0: {})", text.empty() ? "" : ", ", name, here, there);
  }
  if (count > kMostDifferences) text += fmt::format(" and {} more", count - kMostDifferences);
  return text;
}

void check_same_everywhere(const RankFacts& mine, const Communicator& world) {
  const RankFacts first = unpack(world.broadcast(pack(mine), 0));
  agree(world, [&] {
    const std::string differ = differences(mine, first);
    if (!differ.empty())
      fail_usage(
          "rank {} ({}) differs from rank 0: {}: start every rank with the same program and "
          "arguments, and give every node the same files",
          world.rank(), node_name(), differ);
  });
}

std::string build_id() {
  std::string id = "unknown";
  ::dl_iterate_phdr(look_for_build_id, &id);
  return id;
}

std::string node_name() {
  std::array<char, 256> node = {};
  ::gethostname(node.data(), node.size() - 1);
  return node.data();
}

}  // namespace longspan::launcher
