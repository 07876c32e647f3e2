/// Where this rank stands: world rank = (data * C + context) * T + tensor, tensor fastest, so that
/// the ranks that talk most stay inside a node, then those of a sequence. One group per axis. Read
/// next: context_parallel.hpp, tensor_parallel.hpp, data_parallel.hpp.
#pragma once

#include <string>

#include "parallel/communicator.hpp"
#include "parallel/config.hpp"

namespace longspan {

struct MeshShape {
  int data = 1;
  int context = 1;
  int tensor = 1;
  int size() const { return data * context * tensor; }
};

/// Fills in the axes that are 0. Throws Error (usage) with the whole equation and two meshes that
/// would fit if the product is not `ranks`. Pure.
MeshShape resolve_mesh(const MeshConfig& config, int ranks);

/// "mesh.data=2 mesh.context=1", and " mesh.tensor=2" if the weights are shared.
std::string to_string(const MeshShape& shape);

class Mesh {
 public:
  /// Collective over `world`.
  Mesh(const Communicator& world, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  int data_index() const { return data_index_; }
  int context_index() const { return context_index_; }
  int tensor_index() const { return tensor_index_; }
  const Communicator& data() const { return data_; }        ///< same tokens range, other samples
  const Communicator& context() const { return context_; }  ///< same samples, other tokens
  const Communicator& tensor() const { return tensor_; }    ///< same tokens, other weights
  /// data x context: the ranks that hold the same part of the weights. Over it gradients are summed
  /// and optimizer states sharded.
  const Communicator& replicas() const { return replicas_; }
  const Communicator& world() const { return world_; }

 private:
  MeshShape shape_;
  int data_index_, context_index_, tensor_index_;
  Communicator world_;
  Communicator data_;
  Communicator context_;
  Communicator tensor_;
  Communicator replicas_;
};

}  // namespace longspan
