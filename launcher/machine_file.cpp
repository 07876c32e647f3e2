#include "launcher/machine_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "launcher/ini.hpp"
#include "launcher/options.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;

/// A finite number and nothing else.
bool parse_number(const std::string& text, double& value) {
  char* end = nullptr;
  value = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && std::isfinite(value);
}

struct Key {
  std::string name;
  double* value;
  double least, most;
  bool required;
};

// What no machine is beyond, so that a slip of the pen (GB for bytes) is found.
constexpr double kSlowFlops = 1e6, kFastFlops = 1e17;
constexpr double kSlowBytes = 1e4, kFastBytes = 1e14;

class Reader {
 public:
  Reader(MachineDescription& machine, double& ranks, double& shares, double& cores,
         double& adapters)
      : m_(machine) {
    number("machine.ranks-per-node", ranks, 1, 1024, true);
    number("machine.shares-cores", shares, 0, 1, true);
    number("machine.cores", cores, 1, 65536, false);
    number("memory.bytes", m_.memory_bytes, 1e6, 1e15, true);
    number("memory.pointwise-bandwidth", m_.pointwise_bandwidth, kSlowBytes, kFastBytes, true);
    number("memory.program-bytes", m_.program_bytes, 0, 1e12, true);
    link("inside", m_.inside);
    link("between", m_.between);
    number("links.adapters-per-node", adapters, 1, 1024, false);
    number("storage.write-bandwidth", m_.write_bandwidth, kSlowBytes, kFastBytes, true);
    number("storage.read-bandwidth", m_.read_bandwidth, kSlowBytes, kFastBytes, true);
    number("power.watts-per-rank", m_.watts_per_rank, 0, 1e5, false);
    number("power.watts-per-node", m_.watts_per_node, 0, 1e6, false);
    number("price.per-rank-hour", m_.price_per_rank_hour, 0, 1e6, false);
    number("price.pue", m_.pue, 1, 10, false);
    number("price.grams-co2-per-kwh", m_.grams_co2_per_kwh, 0, 5000, false);
    rates("fp32", m_.fp32);
    rates("bf16", m_.bf16);
  }

  void read(const std::vector<IniEntry>& entries, const std::string& source,
            std::vector<std::string>& problems) {
    std::vector<std::string> names{"machine.name"};
    for (const Key& key : keys_) names.push_back(key.name);
    for (const auto& [name, rates] : tables_) names.push_back(name);
    for (const IniEntry& e : entries) {
      const std::string where = fmt::format("{}:{}: {}={}", source, e.line, e.name, e.value);
      if (!seen_.insert(e.name).second) {
        problems.push_back(where + ": it stands twice");
      } else if (e.name == "machine.name") {
        m_.name = e.value;
      } else if (const auto rates = tables_.find(e.name); rates != tables_.end()) {
        table(e.value, where, *rates->second, problems);
      } else if (const auto key = std::find_if(keys_.begin(), keys_.end(),
                                               [&](const Key& k) { return k.name == e.name; });
                 key != keys_.end()) {
        one(*key, e.value, where, problems);
      } else {
        const std::string near = nearest(e.name, names);
        problems.push_back(
            fmt::format("{}: unknown key{}", where,
                        near.empty() ? "" : fmt::format(", did you mean {}?", near)));
      }
    }
    const bool fp32 = seen_section("fp32"), bf16 = seen_section("bf16");
    if (!fp32 && !bf16)
      problems.push_back(
          fmt::format("{}: it has no rates: add a section [fp32] or [bf16]", source));
    for (const auto& [name, rates] : tables_)
      if ((name.starts_with("fp32") ? fp32 : bf16) && !seen_.contains(name))
        problems.push_back(fmt::format("{}: {} is missing", source, name));
    for (const Key& key : keys_) {
      const std::string section = key.name.substr(0, 4);
      const bool wanted = key.required && (section == "fp32"   ? fp32
                                           : section == "bf16" ? bf16
                                                               : true);
      if (wanted && !seen_.contains(key.name))
        problems.push_back(fmt::format("{}: {} is missing: a number from {:g} to {:g}", source,
                                       key.name, key.least, key.most));
    }
  }

 private:
  void number(std::string name, double& value, double least, double most, bool required) {
    keys_.push_back({std::move(name), &value, least, most, required});
  }
  void link(const std::string& which, MachineLink& link) {
    number("links." + which + "-bandwidth", link.bandwidth, kSlowBytes, kFastBytes, true);
    number("links." + which + "-latency", link.latency, 0, 1, true);
    number("links." + which + "-core-seconds-per-byte", link.core_seconds_per_byte, 0, 1e-6, false);
    number("links." + which + "-tensor-core-seconds-per-byte", link.tensor_core_seconds_per_byte, 0,
           1e-6, false);
  }
  void rates(const std::string& name, MachineRates& rates) {
    tables_.insert({name + ".linear-flops", &rates.linear_flops});
    tables_.insert({name + ".attention-forward-flops", &rates.attention_forward_flops});
    tables_.insert({name + ".attention-backward-flops", &rates.attention_backward_flops});
    number(name + ".peak-flops", rates.peak_flops, kSlowFlops, kFastFlops, true);
  }
  bool seen_section(const std::string& section) const {
    return std::any_of(seen_.begin(), seen_.end(),
                       [&](const std::string& name) { return name.rfind(section + ".", 0) == 0; });
  }
  static void one(const Key& key, const std::string& text, const std::string& where,
                  std::vector<std::string>& problems) {
    double value = 0;
    if (key.name == "machine.shares-cores") {
      if (text != "on" && text != "off") problems.push_back(where + ": it must be on or off");
      *key.value = text == "on" ? 1 : 0;
    } else if (!parse_number(text, value) || value < key.least || value > key.most) {
      problems.push_back(
          fmt::format("{}: it must be a number from {:g} to {:g}", where, key.least, key.most));
    } else if ((key.name == "machine.ranks-per-node" || key.name == "machine.cores" ||
                key.name == "links.adapters-per-node") &&
               value != std::floor(value)) {
      problems.push_back(where + ": it must be a whole number");
    } else {
      *key.value = value;
    }
  }
  /// "2e11" or "64:1e11 1024:2e11".
  static void table(const std::string& text, const std::string& where, RateTable& rates,
                    std::vector<std::string>& problems) {
    std::istringstream words(text);
    std::string word;
    bool fine = true;
    while (words >> word) {
      const std::size_t colon = word.find(':');
      double size = 1, rate = 0;
      fine = fine && (colon == std::string::npos || parse_number(word.substr(0, colon), size)) &&
             parse_number(colon == std::string::npos ? word : word.substr(colon + 1), rate) &&
             size >= 1 && rate >= kSlowFlops && rate <= kFastFlops &&
             (rates.entries.empty() || size > rates.entries.back().first);
      rates.entries.emplace_back(size, rate);
    }
    if (!fine || rates.entries.empty())
      problems.push_back(fmt::format(
          "{}: it must be one number of FLOP/s from {:g} to {:g}, or size:FLOP/s pairs with "
          "ascending sizes, such as \"256:1e11 1024:2e11\"",
          where, kSlowFlops, kFastFlops));
  }

  MachineDescription& m_;
  std::vector<Key> keys_;
  std::map<std::string, RateTable*> tables_;
  std::set<std::string> seen_;
};

std::set<std::string> known_machines() {
  std::set<std::string> names;
  for (const std::string& folder : machine_folders()) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
      if (entry.path().extension() == ".ini") names.insert(entry.path().stem().string());
  }
  return names;
}

}  // namespace

double RateTable::at(double size) const {
  const auto above = std::lower_bound(entries.begin(), entries.end(), size,
                                      [](const auto& entry, double w) { return entry.first < w; });
  if (above == entries.begin()) return above->second;
  if (above == entries.end()) return entries.back().second;
  const auto below = above - 1;
  const double share = std::log(size / below->first) / std::log(above->first / below->first);
  return below->second + share * (above->second - below->second);
}

RateTable& RateTable::operator*=(double factor) {
  for (auto& [size, rate] : entries) rate *= factor;
  return *this;
}

MachineDescription MachineDescription::for_rank(int ranks, int threads) const {
  MachineDescription rank = *this;
  if (!shares_cores) return rank;
  rank.memory_bytes /= ranks;
  // So many ranks like this one the node has cores for.
  if (threads > 0 && cores > 0) ranks = std::max(ranks, cores / threads);
  for (MachineRates* rates : {&rank.fp32, &rank.bf16}) {
    for (RateTable* table :
         {&rates->linear_flops, &rates->attention_forward_flops, &rates->attention_backward_flops})
      *table *= 1.0 / ranks;
    rates->peak_flops /= ranks;
  }
  rank.pointwise_bandwidth /= ranks;
  return rank;
}

MachineDescription parse_machine(const std::string& text, const std::string& source) {
  MachineDescription machine;
  machine.path = source;
  std::vector<std::string> problems;
  double ranks = 1, shares = 0, cores = 0, adapters = 0;
  Reader(machine, ranks, shares, cores, adapters)
      .read(parse_ini_lines(text, source, problems), source, problems);
  if (machine.name.empty()) problems.push_back(source + ": machine.name is missing");
  if (!problems.empty())
    throw Error(fmt::format("{}", fmt::join(problems, "\n")), ExitStatus::kUsage);
  machine.ranks_per_node = static_cast<int>(ranks);
  machine.shares_cores = shares > 0;
  machine.cores = static_cast<int>(cores);
  machine.adapters_per_node = static_cast<int>(adapters);
  return machine;
}

std::string user_folder() {
  const auto set = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  const std::string config = set("XDG_CONFIG_HOME");
  if (!config.empty()) return config + "/longspan";
  return (set("HOME").empty() ? "." : set("HOME")) + "/.config/longspan";
}

std::vector<std::string> machine_folders() {
  std::vector<std::string> folders{"configs/machines"};
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  for (fs::path folder = program.parent_path(); !folder.empty(); folder = folder.parent_path()) {
    if (fs::is_directory(folder / "configs/machines", ignored)) {
      folders.push_back((folder / "configs/machines").string());
      break;
    }
    if (folder == folder.root_path()) break;
  }
  folders.push_back(user_folder());
  return folders;
}

MachineDescription load_machine(const std::string& name) {
  std::string path;
  if (name.find('/') != std::string::npos || fs::path(name).extension() == ".ini") {
    path = name;
  } else {
    for (const std::string& folder : machine_folders())
      if (path.empty() && fs::is_regular_file(fs::path(folder) / (name + ".ini")))
        path = (fs::path(folder) / (name + ".ini")).string();
  }
  std::ifstream file(path);
  if (path.empty() || !file || fs::is_directory(path)) {
    if (name == "local")
      fail_usage(
          "machine local: {}/local.ini does not exist: `longspan doctor --calibrate` "
          "measures this machine and writes it",
          user_folder());
    fail_usage("machine {}: there is no such description; there are {}, or the path of a file{}",
               name, fmt::join(known_machines(), ", "),
               known_machines().contains("local")
                   ? ""
                   : ", and `local` once `longspan doctor --calibrate` has measured this machine");
  }
  std::ostringstream text;
  text << file.rdbuf();
  return parse_machine(text.str(), path);
}

}  // namespace longspan::launcher
