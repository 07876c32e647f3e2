/// mesh.elastic: which mesh a run goes on with when it gets other ranks than its configuration asks
/// for, since a node was lost or more are free. Data order, initial weights and dropout do not
/// depend on the mesh, and the global batch stays: the losses are those of the configured mesh to
/// rounding.
#pragma once

#include <string>

#include "launcher/run_config.hpp"
#include "parallel/mesh.hpp"

namespace longspan::launcher {

struct MeshChoice {
  MeshShape shape;
  std::string why = {};  ///< one line if it is not the configured one; else empty
};

/// The mesh of `ranks` ranks for a resolved configuration. Without mesh.elastic, and whenever the
/// configured one fits: resolve_mesh. Else the fitting mesh with the nearest mesh.tensor, of these
/// the one with the nearest mesh.context (by ratio; of two equally near the larger, which needs
/// less memory), mesh.data the rest. All ranks work: one that idled would be paid for without a
/// word. A mesh fits if the weights can be shared evenly by its tensor ranks, every context rank
/// gets a token, and the global batch is whole micro-batches of its data ranks. Throws Error
/// (usage): as resolve_mesh; with mesh.elastic, naming meshes that would fit fewer ranks. Pure.
MeshChoice choose_mesh(const RunConfig& config, int ranks);

}  // namespace longspan::launcher
