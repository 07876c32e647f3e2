/// From measurements to findings. Every threshold is here.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "io/file.hpp"
#include "launcher/doctor.hpp"

namespace longspan::launcher {
namespace {

using io::format_bytes;

constexpr double kSlow = 0.8, kIll = 0.5;  ///< of the median
constexpr double kClocksApart = 1.0;       ///< seconds
constexpr std::int64_t kShmPerRank = 64 << 20;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

std::string seconds_text(double seconds) {
  const double size = std::abs(seconds);
  if (size < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (size < 1) return fmt::format("{:.1f} ms", seconds * 1e3);
  return fmt::format("{:.1f} s", seconds);
}

std::string speed_text(double bytes_per_second) {
  return format_bytes(static_cast<std::int64_t>(bytes_per_second)) + "/s";
}

/// One kind of link: all inside nodes, or all between them. Inside a node distance between sockets
/// and ranks that share cores make differences that are no illness.
Findings judge_kind(bool inside, const std::vector<parallel::LinkSpeed>& links,
                    const std::vector<std::string>& nodes) {
  if (links.empty()) return {};
  const std::string subject = inside ? "inside a node" : "between nodes";
  std::vector<double> speeds, latencies;
  for (const auto& link : links) {
    speeds.push_back(link.bytes_per_second);
    latencies.push_back(link.latency_seconds);
  }
  const double usual = median(speeds);
  Findings findings = {
      {"between ranks", subject, Health::kGood,
       fmt::format("{} one way, {} for 8 bytes (median of {} pair{})", speed_text(usual),
                   seconds_text(median(latencies)), links.size(), links.size() == 1 ? "" : "s")}};
  for (const auto& link : links) {
    const bool ill = link.bytes_per_second < kIll * usual;
    if (!ill && (inside || link.bytes_per_second >= kSlow * usual)) continue;
    const auto name = [&](int rank) {
      return fmt::format("rank {} on {}", rank, nodes[static_cast<std::size_t>(rank)]);
    };
    findings.push_back(
        {"between ranks", subject,
         link.bytes_per_second < kIll * usual ? Health::kBad : Health::kWarning,
         fmt::format("{} to {}: {}, {:.2f} x the median", name(link.from), name(link.to),
                     speed_text(link.bytes_per_second), link.bytes_per_second / usual),
         "look at the cable, the port and what else runs there; leave the node out "
         "with slurm.extra = --exclude=NODE"});
  }
  return findings;
}

}  // namespace

Findings judge_speeds(const std::vector<double>& flops, const std::vector<std::string>& nodes) {
  const double usual = median(flops);
  Findings findings = {{"between ranks", "matrix product", Health::kGood,
                        fmt::format("{:.1f} GFLOP/s a rank (fp32, 1024^3, all {} at once, median)",
                                    usual * 1e-9, flops.size())}};
  for (std::size_t rank = 0; rank < flops.size(); ++rank) {
    if (flops[rank] >= kSlow * usual) continue;
    findings.push_back({"between ranks", "matrix product",
                        flops[rank] < kIll * usual ? Health::kBad : Health::kWarning,
                        fmt::format("rank {} on {}: {:.1f} GFLOP/s, {:.2f} x the median", rank,
                                    nodes[rank], flops[rank] * 1e-9, flops[rank] / usual),
                        "every step waits for it: look for other programs, a low clock or heat "
                        "there, or leave the "
                        "node out with slurm.extra = --exclude=NODE"});
  }
  return findings;
}

Findings judge_links(const std::vector<parallel::LinkSpeed>& links,
                     const std::vector<std::string>& nodes) {
  std::vector<parallel::LinkSpeed> inside, between;
  for (const auto& link : links) {
    const bool same =
        nodes[static_cast<std::size_t>(link.from)] == nodes[static_cast<std::size_t>(link.to)];
    (same ? inside : between).push_back(link);
  }
  Findings findings = judge_kind(true, inside, nodes);
  for (Finding& f : judge_kind(false, between, nodes)) findings.push_back(std::move(f));
  return findings;
}

Findings judge_clocks(const std::vector<double>& ahead, const std::vector<std::string>& nodes) {
  double widest = 0;
  std::size_t rank_of_it = 0;
  for (std::size_t rank = 0; rank < ahead.size(); ++rank)
    if (std::abs(ahead[rank]) > std::abs(widest)) widest = ahead[rank], rank_of_it = rank;
  if (std::abs(widest) <= kClocksApart)
    return {{"between ranks", "clocks", Health::kGood,
             fmt::format("within {}", seconds_text(std::abs(widest)))}};
  return {
      {"between ranks", "clocks", Health::kWarning,
       fmt::format("{}'s clock is {} {} {}'s", nodes[rank_of_it], seconds_text(std::abs(widest)),
                   widest > 0 ? "ahead of" : "behind", nodes[0]),
       "set the clocks by NTP or chrony: time limits, logs and the age of files go by them"}};
}

Findings judge_file_system(const std::string& folder, const io::FileSystemFacts& f, int nodes) {
  const std::string topic = "run directory " + folder;
  Findings findings;
  const auto add = [&](const char* subject, Health health, std::string found,
                       std::string remedy = "") {
    findings.push_back({topic, subject, health, std::move(found), std::move(remedy)});
  };
  add("file system", Health::kInfo, f.type);
  const bool memory = f.type == "tmpfs";
  if (memory)
    findings.back() = {topic, "file system", Health::kWarning,
                       "tmpfs: it is memory, and gone when the node starts anew",
                       "choose a run.directory on a disk"};
  const std::string space =
      fmt::format("{} free of {}", format_bytes(f.free_bytes), format_bytes(f.total_bytes));
  if (f.free_bytes < (std::int64_t{1} << 30))
    add("space", Health::kBad, space,
        "less than 1 GiB: a checkpoint has 12 bytes for every parameter, and two are there at a "
        "time; make room or choose another run.directory");
  else if (f.free_bytes < f.total_bytes / 50)
    add("space", Health::kWarning, space, "more than 98 % are used: make room");
  else
    add("space", Health::kGood, space);
  if (f.free_files >= 0 && f.free_files < 1000)
    add("files", Health::kBad, fmt::format("{} more can be made", f.free_files),
        "the file system is out of inodes: remove small files");
  if (f.locking.empty())
    add("locking", Health::kGood, "flock holds a second run off");
  else
    add("locking", nodes > 1 ? Health::kBad : Health::kWarning, f.locking,
        "two runs could write into one directory unnoticed: mount with flock (Lustre: -o flock) or "
        "choose another run.directory");
  if (f.renaming.empty())
    add("rename", Health::kGood, "replaces a file in one step");
  else
    add("rename", Health::kBad, f.renaming,
        "checkpoints are published by renaming: choose another run.directory");
  if (!f.linking.empty())
    add("symbolic links", Health::kWarning, f.linking,
        "`checkpoints/latest` is one; without it the newest step folder is used");
  add("O_DIRECT", Health::kInfo,
      f.direct ? "works" : "is not offered; writes go by the page cache");
  const std::string sync = fmt::format("{} for an fsync", seconds_text(f.sync_seconds));
  if (f.sync_seconds > 1)
    add("durability", Health::kWarning, sync,
        "every save syncs a few files: checkpoint.overlap=on hides it");
  else
    add("durability", Health::kGood, sync);
  if (f.write_bytes_per_second > 0)
    add("writing", f.write_bytes_per_second < 50e6 ? Health::kWarning : Health::kGood,
        fmt::format("{} written and synced by one rank", speed_text(f.write_bytes_per_second)),
        f.write_bytes_per_second < 50e6
            ? "a save will take long: checkpoint.every should be many of its durations"
            : "");
  return findings;
}

Findings judge_node(const NodeFacts& f, int ranks_here) {
  Findings findings;
  const auto add = [&](const char* subject, Health health, std::string found,
                       std::string remedy = "") {
    findings.push_back({"node", subject, health, std::move(found), std::move(remedy)});
  };
  const std::string cores =
      fmt::format("{} of {} for this process, {} rank{} on the node", f.usable_cores,
                  f.machine_cores, ranks_here, ranks_here == 1 ? "" : "s");
  if (f.sharing_ranks > f.usable_cores)
    add("cores", Health::kBad,
        fmt::format("{}; {} ranks share {}", cores, f.sharing_ranks, f.usable_cores),
        "ranks wait for each other: start fewer per node, or give each cores of its own "
        "(slurm.cpus-per-rank, mpirun --map-by)");
  else
    add("cores", Health::kGood, cores);
  if (f.governor == "powersave")
    add("clock governor", Health::kWarning, "powersave",
        "processors may stay at a low clock: performance or schedutil");
  const std::int64_t ceiling =
      f.group_limit_bytes > 0 ? std::min(f.group_limit_bytes, f.memory_bytes) : f.memory_bytes;
  const std::string memory = fmt::format(
      "{} available of {}{}", format_bytes(f.available_bytes), format_bytes(f.memory_bytes),
      ceiling < f.memory_bytes ? fmt::format(", limited to {} for this job", format_bytes(ceiling))
                               : "");
  if (f.available_bytes < f.memory_bytes / 4)
    add("memory", Health::kWarning, memory, "more than three quarters are in use by others");
  else
    add("memory", Health::kGood, memory);
  const std::string shm = format_bytes(f.shm_free_bytes) + " free";
  if (f.shm_free_bytes < kShmPerRank * ranks_here)
    add("/dev/shm", Health::kBad, shm,
        fmt::format("MPI's messages inside a node pass there, about {} a rank: make it larger "
                    "(containers: --shm-size)",
                    format_bytes(kShmPerRank)));
  else
    add("/dev/shm", Health::kGood, shm);
  if (f.file_size_limit >= 0)
    add("limit: file size", Health::kWarning, format_bytes(f.file_size_limit),
        "larger checkpoints fail: ulimit -f unlimited");
  if (f.address_limit >= 0)
    add("limit: address space", Health::kWarning, format_bytes(f.address_limit),
        "allocations behind it fail: ulimit -v unlimited");
  if (f.infiniband && f.locked_limit >= 0 && f.locked_limit < (std::int64_t{1} << 30))
    add("limit: locked memory", Health::kBad, format_bytes(f.locked_limit),
        "InfiniBand registers its buffers: ulimit -l unlimited, under Slurm "
        "PropagateResourceLimitsExcept=MEMLOCK");
  if (f.open_files < 1024)
    add("limit: open files", Health::kWarning, std::to_string(f.open_files),
        "a rank opens a connection to each other one: ulimit -n 65536");
  else
    add("limit: open files", Health::kGood, std::to_string(f.open_files));
  if (f.processes >= 0 && f.processes < 256)
    add("limit: processes", Health::kWarning, std::to_string(f.processes),
        "threads count as well: ulimit -u 4096");
  return findings;
}

}  // namespace longspan::launcher
