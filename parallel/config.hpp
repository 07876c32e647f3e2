/// Settings of the mesh; names, units and help stand once in launcher/options.cpp.
#pragma once

namespace longspan {

struct MeshConfig {
  int data = 0;     ///< ranks that share the batch; 0 = whatever the other axes leave
  int context = 1;  ///< ranks that share one sequence; 0 as above
  int tensor = 1;   ///< ranks that share the weights of every layer; 0 as above
  bool elastic = false;  ///< with other ranks than these: the next fitting mesh
};

}  // namespace longspan
