/// The bfloat16 copy of the weights that products read with model.precision=bf16: rounded a unit at
/// a time when the unit is first needed in a pass, so that weights which are still on their way
/// from their owners are not read too early. Read next: parameters.hpp, which owns it.
#pragma once

#include <cstdint>
#include <vector>

#include "model/kernels/kernels.hpp"
#include "parallel/device.hpp"
#include "parallel/shard_map.hpp"

namespace longspan::model {

class RoundedWeights {
 public:
  /// Of `units` from number `first_unit` on. `whole`: all units' copies stay from pass to pass, 2
  /// bytes a weight; otherwise a unit has one from need() to done().
  RoundedWeights(std::vector<FlatRange> units, int first_unit, bool whole, Backend backend);

  /// Weights are written from many places (optimizer, checkpoint, tests): all copies are stale now.
  void begin_pass();
  /// The unit's copy is current on return; `weights` is where its weights are.
  void need(int unit, const float* weights);
  void done(int unit);
  /// The copy of a unit; null if there is none.
  const std::uint16_t* at(int unit) const;

 private:
  struct Copy {
    Buffer<std::uint16_t> rounded;
    bool stale = true;
  };
  std::vector<FlatRange> units_;
  std::vector<Copy> copies_;
  int first_unit_;
  bool whole_;
  Backend backend_;
};

}  // namespace longspan::model
