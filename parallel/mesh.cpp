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
  return fmt::format("{} * {} * {} does not make {} rank{}", part("data", config.data),
                     part("context", config.context), part("tensor", config.tensor), ranks,
                     ranks == 1 ? "" : "s");
}

}  // namespace

MeshShape resolve_mesh(const MeshConfig& config, int ranks) {
  MeshShape shape{config.data, config.context, config.tensor};
  // The first axis that is 0 takes what the others leave, in the order data, context, tensor.
  const bool data = shape.data == 0, context = !data && shape.context == 0,
             tensor = !data && !context && shape.tensor == 0;
  for (int* axis : {&shape.data, &shape.context, &shape.tensor}) *axis = std::max(1, *axis);
  const int rest = std::max(1, ranks / shape.size());
  if (data) shape.data = rest;
  if (context) shape.context = rest;
  if (tensor) shape.tensor = rest;
  if (shape.size() == ranks) return shape;
  // Two that fit, with the tensor axis as it was asked for if that is possible.
  const int kept = config.tensor > 0 && ranks % config.tensor == 0 ? config.tensor : 1;
  const MeshShape for_speed{ranks / kept, 1, kept}, for_length{1, ranks / kept, kept};
  fail_usage("{}: set {} (for speed) or {} (for long sequences), or start {} rank{}",
             equation(config, ranks), to_string(for_speed), to_string(for_length), shape.size(),
             shape.size() == 1 ? "" : "s");
}

std::string to_string(const MeshShape& shape) {
  const auto text = fmt::format("mesh.data={} mesh.context={}", shape.data, shape.context);
  return shape.tensor == 1 ? text : fmt::format("{} mesh.tensor={}", text, shape.tensor);
}

Mesh::Mesh(const Communicator& world, const MeshShape& shape)
    : shape_(shape),
      data_index_(world.rank() / (shape.tensor * shape.context)),
      context_index_(world.rank() / shape.tensor % shape.context),
      tensor_index_(world.rank() % shape.tensor),
      world_(world.duplicate()),
      data_(world.split(world.rank() % (shape.tensor * shape.context), world.rank(), "data")),
      context_(world.split(data_index_ * shape.tensor + tensor_index_, world.rank(), "context")),
      tensor_(world.split(world.rank() / shape.tensor, world.rank(), "tensor")),
      replicas_(world.split(tensor_index_, world.rank(), "replicas")) {}

}  // namespace longspan
