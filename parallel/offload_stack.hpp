/// Where memory waits that is not needed for a while: a stack in the manner of forward and
/// backward, what went out last comes back first. Read next: spill_file.hpp (a file),
/// cuda/host_offload.hpp (a GPU's in the host's memory); used by model/transformer.cpp.
#pragma once

#include <vector>

#include "parallel/device.hpp"

namespace longspan {

class OffloadStack {
 public:
  using Group = std::vector<Buffer<float>>;
  virtual ~OffloadStack() = default;

  /// Puts a group on the stack. Its memory is given back as soon as it has left; that of the
  /// previous group has been when this returns, so at most one group is on its way. Empty buffers
  /// stay empty. Throws Error if it has nowhere to go.
  virtual void push(Group group) = 0;
  /// Makes room for the group on top and begins to fetch it; nothing if that has begun already or
  /// the stack is empty.
  virtual void prefetch() = 0;
  /// Takes the group off the top, the same shapes and bits: what the device's compute stream is
  /// given from now on sees them. Throws Error if it cannot be had.
  virtual Group pop() = 0;
  /// Forgets all groups, after an exception has ended a pass.
  virtual void clear() = 0;
};

}  // namespace longspan
