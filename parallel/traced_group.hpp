/// Groups whose operations are seen by trace.hpp: from their start until somebody has waited for
/// them, on a track of their own, and the waiting on the track of who waits.
#pragma once

#include "parallel/process_group.hpp"

namespace longspan {

/// Makes what `make` makes, with an eye on it. Named as the communicator.
MakeGroup traced(MakeGroup make);

}  // namespace longspan
