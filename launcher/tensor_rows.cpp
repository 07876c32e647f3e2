#include "launcher/tensor_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <tuple>

namespace longspan::launcher {
namespace {

struct LayerName {
  std::string before, after;
  std::int64_t number = 0;
};

/// "model/blocks.7.mlp.up.weight": {"model/blocks.", ".mlp.up.weight", 7}
std::optional<LayerName> layer_of(const std::string& name) {
  for (auto dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
    const auto end = name.find('.', dot + 1);
    if (end == std::string::npos) return std::nullopt;
    std::int64_t number = 0;
    const auto [rest, error] = std::from_chars(name.data() + dot + 1, name.data() + end, number);
    if (error == std::errc() && rest == name.data() + end && number >= 0)
      return LayerName{name.substr(0, dot + 1), name.substr(end), number};
  }
  return std::nullopt;
}

/// {0, 1, 2, 5}: "0-2,5"
std::string ranges(std::vector<std::int64_t> numbers) {
  std::sort(numbers.begin(), numbers.end());
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += text.empty() ? "" : ",";
    text +=
        last == i ? fmt::format("{}", numbers[i]) : fmt::format("{}-{}", numbers[i], numbers[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace

std::vector<TensorRow> rows_of(const std::vector<std::pair<std::string, std::string>>& tensors,
                               bool unfold) {
  std::vector<TensorRow> rows;
  std::map<std::tuple<std::string, std::string, std::string>, std::size_t> row_of;
  std::vector<std::vector<std::int64_t>> numbers;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, like] = tensors[i];
    const auto layer = unfold ? std::nullopt : layer_of(name);
    if (layer) {
      const auto [at, is_new] =
          row_of.try_emplace({layer->before, layer->after, like}, rows.size());
      if (!is_new) {
        rows[at->second].members.push_back(i);
        numbers[at->second].push_back(layer->number);
        continue;
      }
    }
    rows.push_back({name, {i}});
    numbers.push_back(layer ? std::vector{layer->number} : std::vector<std::int64_t>{});
  }
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].members.size() == 1) continue;
    const LayerName layer = *layer_of(rows[r].name);
    rows[r].name = layer.before + ranges(numbers[r]) + layer.after;
  }
  return rows;
}

}  // namespace longspan::launcher
