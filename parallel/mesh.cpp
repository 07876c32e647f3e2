#include "parallel/mesh.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "parallel/error.hpp"

namespace longspan {
namespace {

std::string equation(const MeshConfig& config, int ranks) {
  auto part = [](const char* name, int value) {
    return value == 0 ? fmt::format("mesh.{}=auto", name) : fmt::format("mesh.{}={}", name, value);
  };
  return fmt::format("{} * {} does not make {} rank{}", part("data", config.data),
                     part("context", config.context), ranks, ranks == 1 ? "" : "s");
}

}  // namespace

MeshShape resolve_mesh(const MeshConfig& config, int ranks) {
  MeshShape shape{config.data, config.context};
  if (shape.context == 0) shape.context = shape.data == 0 ? 1 : std::max(1, ranks / shape.data);
  if (shape.data == 0) shape.data = std::max(1, ranks / shape.context);
  if (shape.size() == ranks) return shape;
  const MeshShape all_data{ranks, 1}, all_context{1, ranks};
  fail_usage("{}: set {} (for speed) or {} (for long sequences), or start {} rank{}",
             equation(config, ranks), to_string(all_data), to_string(all_context), shape.size(),
             shape.size() == 1 ? "" : "s");
}

std::string to_string(const MeshShape& shape) {
  return fmt::format("mesh.data={} mesh.context={}", shape.data, shape.context);
}

Mesh::Mesh(const Communicator& world, const MeshShape& shape)
    : shape_(shape),
      data_index_(world.rank() / shape.context),
      context_index_(world.rank() % shape.context),
      world_(world.duplicate()),
      data_(world.split(context_index_, data_index_)),
      context_(world.split(data_index_, context_index_)) {}

}  // namespace longspan
