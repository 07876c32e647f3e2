/// Where this rank stands: world rank = data * C + context, context fastest, so that a sequence
/// stays inside a node as long as it fits. One group per axis. Read next: context_parallel.hpp,
/// data_parallel.hpp.
#pragma once

#include <string>

#include "parallel/communicator.hpp"
#include "parallel/config.hpp"

namespace longspan {

struct MeshShape {
  int data = 1;
  int context = 1;
  int size() const { return data * context; }
};

/// Fills in the axes that are 0. Throws Error (usage) with the whole equation and two meshes that
/// would fit if the product is not `ranks`. Pure.
MeshShape resolve_mesh(const MeshConfig& config, int ranks);

std::string to_string(const MeshShape& shape);  ///< "data=2 context=1"

class Mesh {
 public:
  /// Collective over `world`.
  Mesh(const Communicator& world, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  int data_index() const { return data_index_; }
  int context_index() const { return context_index_; }
  const Communicator& data() const { return data_; }        ///< same tokens range, other samples
  const Communicator& context() const { return context_; }  ///< same samples, other tokens
  const Communicator& world() const {
    return world_;
  }  ///< data x context: over it gradients are summed

 private:
  MeshShape shape_;
  int data_index_;
  int context_index_;
  Communicator world_;
  Communicator data_;
  Communicator context_;
};

}  // namespace longspan
