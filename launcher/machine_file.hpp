/// What a planner has to know of hardware: rates, memory, links, power and prices, read from an INI
/// file (configs/machines/README.md lists the keys). Nothing is guessed: an unknown name, a key
/// that is missing and a value out of its range are errors. Read next: plan.hpp, which uses it;
/// calibrate.hpp, which writes one.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "model/config.hpp"

namespace longspan::launcher {

/// FLOP/s against a size: in between by the logarithm of the size, beyond the ends as at them.
struct RateTable {
  RateTable() = default;
  RateTable(double rate) : entries{{1, rate}} {}  ///< the same at every size
  RateTable(std::initializer_list<std::pair<double, double>> given) : entries(given) {}
  std::vector<std::pair<double, double>> entries;  ///< (size, FLOP/s), sizes ascending
  double at(double size) const;
  RateTable& operator*=(double factor);
};

/// Of one precision, in model FLOPs: attention 4 and 8 per visible pair and channel.
struct MachineRates {
  RateTable linear_flops;  ///< by the depth of the product, of weights as wide as they are deep
  /// By the keys of a call, causal.
  RateTable attention_forward_flops, attention_backward_flops;
  double peak_flops = 0;  ///< 100 % of MFU
  bool given() const { return !linear_flops.entries.empty(); }
};

struct MachineLink {
  double bandwidth = 0;  ///< bytes/s a rank sends while all do
  double latency = 0;    ///< seconds
  /// What a byte that a rank sends takes from the cores that compute, hidden or not (CPU: copies
  /// and sums); 0 = nothing.
  double core_seconds_per_byte = 0;
  /// The same of the gathers and sums over tensor ranks, which no compute runs beside: by the bytes
  /// of the whole arrays, which every rank touches.
  double tensor_core_seconds_per_byte = 0;
};

struct MachineDescription {
  std::string name, path;
  int ranks_per_node = 1;
  /// Rates, memory and bandwidth of memory are those of a node, which its ranks share (CPU); else
  /// of one rank (GPU).
  bool shares_cores = false;
  int cores = 0;  ///< of a node whose ranks share them; 0 = not told
  MachineRates fp32, bf16;
  double memory_bytes = 0, pointwise_bandwidth = 0;
  double program_bytes = 0;     ///< of a rank, beside its arrays: program, libraries, their buffers
  MachineLink inside, between;  ///< a node, nodes
  /// Network adapters of a node, which its ranks share evenly; 0 = each rank has one.
  int adapters_per_node = 0;
  double write_bandwidth = 0, read_bandwidth = 0;  ///< bytes/s of a rank while all do
  double watts_per_rank = 0, watts_per_node = 0;   ///< under load; 0 = not told
  double price_per_rank_hour = 0, pue = 1, grams_co2_per_kwh = 0;  ///< 0 = not told

  const MachineRates& rates(model::Precision precision) const {
    return precision == model::Precision::kBf16 ? bf16 : fp32;
  }
  int adapters() const { return adapters_per_node > 0 ? adapters_per_node : ranks_per_node; }
  /// Of one of `ranks` ranks of a node: what they share is divided. `threads` of each (run.threads;
  /// 0 = all cores of the node are used): fewer than there are leave cores idle, where `cores` is
  /// told.
  MachineDescription for_rank(int ranks, int threads) const;
};

/// INI text to a description. Throws Error (usage) with every problem at once, one a line.
MachineDescription parse_machine(const std::string& text, const std::string& source);

/// `name` with a '/' or the ending .ini is a file; else NAME.ini in the folders of
/// machine_folders(), the first that has it. Throws Error (usage) that lists the machines there
/// are; for `local`, how to make it.
MachineDescription load_machine(const std::string& name);

/// In this order: ./configs/machines, configs/machines in the nearest folder above the program that
/// has it, and the user's own.
std::vector<std::string> machine_folders();

/// $XDG_CONFIG_HOME/longspan or ~/.config/longspan: where `local` is.
std::string user_folder();

}  // namespace longspan::launcher
