/// The tensors of a checkpoint as a tree: groups ("model/"), a line per tensor, alike layers on one
/// line, the optimizer's states beside their weight. Pure but for gather_statistics, which reads.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "launcher/terminal_style.hpp"

namespace longspan::launcher {

/// Of a reader: tables of many blocks are not copied.
using TensorList = std::vector<const io::TensorEntry*>;
using StatisticsByName = std::map<std::string, io::TensorStatistics>;

std::int64_t bytes_of(const io::TensorEntry& tensor);
std::int64_t elements_of(const std::vector<io::TensorEntry>& tensors, const std::string& group);

/// Every value of `tensors`, hashed. Those that cannot be read are missing in the result and named
/// in `problems`. Shows its progress on stderr.
StatisticsByName gather_statistics(io::CheckpointReader& reader, const TensorList& tensors,
                                   std::vector<io::VerifyProblem>& problems);

/// The tree for people; `statistics` may be empty. Where tensors share a line their bytes are
/// summed and their statistics are those of all their elements together.
std::string tensors_text(const TensorList& tensors, const StatisticsByName& statistics, bool unfold,
                         const Style& style);

/// {"name", "dtype", "shape", "elements", "bytes", "blocks", "shards"}, with "statistics" if there
/// are some: mean and the like are null where no element is finite.
nlohmann::json tensor_json(const io::TensorEntry& tensor, const StatisticsByName& statistics);

}  // namespace longspan::launcher
