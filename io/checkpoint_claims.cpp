#include "io/checkpoint_claims.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "parallel/error.hpp"

namespace longspan::io {

void require_tensor_name(const std::string& path, const std::string& name) {
  const auto part = [&](std::string_view what) {
    return ("/" + name + "/").find(what) != std::string::npos;
  };
  if (name.empty() || name.size() > 1024 || printable(name) != name || part("//") || part("/./") ||
      part("/../") || part("@"))
    fail_damaged("{}: the manifest names a tensor '{}': not a name", path, name.substr(0, 80));
}

void require_shard_name(const std::string& path, const std::string& name) {
  if (name.empty() || name.size() > 255 || name.front() == '.' || printable(name) != name ||
      name.find_first_of("/\\") != std::string::npos)
    fail_damaged("{}: the manifest names a shard '{}': not the bare name of a file", path,
                 name.substr(0, 80));
}

std::string cover_problem(const TensorEntry& tensor, std::int64_t& patience) {
  std::int64_t covered = 0;
  std::vector<const TensorEntry::Block*> blocks;
  for (const auto& block : tensor.blocks) {
    covered += element_count(block.shape);
    blocks.push_back(&block);
  }
  const std::int64_t expected = element_count(tensor.global_shape);
  std::sort(blocks.begin(), blocks.end(),
            [](const auto* a, const auto* b) { return a->offset < b->offset; });
  const auto meet = [](const TensorEntry::Block& a, const TensorEntry::Block& b) {
    for (std::size_t d = 0; d < a.shape.size(); ++d)
      if (a.offset[d] >= b.offset[d] + b.shape[d] || b.offset[d] >= a.offset[d] + a.shape[d])
        return false;
    return true;
  };
  // Sorted by first row: a block can only meet those that start before it ends. A scalar has no
  // rows, and one block.
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto& a = *blocks[i];
    for (std::size_t j = i + 1;
         j < blocks.size() && (a.shape.empty() || blocks[j]->offset[0] < a.offset[0] + a.shape[0]);
         ++j) {
      if (patience == 0) return "so many blocks lie side by side that they cannot be checked";
      --patience;
      const auto& b = *blocks[j];
      if (meet(a, b))
        return fmt::format(
            "ranks {} and {} both hold elements of '{}': blocks {} at {} and {} at {}; each "
            "element must have one owner",
            a.shard, b.shard, tensor.name, to_string(a.shape), to_string(a.offset),
            to_string(b.shape), to_string(b.offset));
    }
  }
  if (covered != expected)
    return fmt::format(
        "the ranks hold {} of the {} elements of '{}' {}: every element needs an "
        "owner",
        covered, expected, tensor.name, to_string(tensor.global_shape));
  return "";
}

std::int64_t patience_for(const std::vector<TensorEntry>& tensors) {
  std::int64_t blocks = 0;
  for (const TensorEntry& tensor : tensors)
    blocks += static_cast<std::int64_t>(tensor.blocks.size());
  return 1000 * blocks + 1'000'000;
}

}  // namespace longspan::io
