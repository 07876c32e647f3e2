/// Layers that are alike on one line: "blocks.0-11.mlp.up.weight" instead of twelve lines. Shared
/// by the listing and the comparison of checkpoints. Pure.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace longspan::launcher {

/// One line of a listing and the tensors it stands for.
struct TensorRow {
  std::string name;
  std::vector<std::size_t> members;  ///< positions in the list given
};

/// `tensors`: {name, what must be equal for two to share a line}. Tensors whose names differ in the
/// first number between two dots alone share one, at the place of the first of them. With `unfold`
/// each has its own.
std::vector<TensorRow> rows_of(const std::vector<std::pair<std::string, std::string>>& tensors,
                               bool unfold);

}  // namespace longspan::launcher
