/// How fast ranks talk to each other, and how far their nodes' clocks are apart. For `doctor`: a
/// second or two of messages, nothing that training uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace longspan::parallel {

/// One pair of ranks, one pair at a time on the whole job.
struct LinkSpeed {
  int from = 0, to = 0;
  double latency_seconds = 0;   ///< half a round trip of 8 bytes, the median
  double bytes_per_second = 0;  ///< of `probe_bytes` one way, the best
};

/// Every rank with the next one, and the first with the middle one. Empty with one rank.
/// Collective; the same on every rank.
std::vector<LinkSpeed> probe_links(const Communicator& world, std::int64_t probe_bytes = 8 << 20);

/// What each rank's wall clock (CLOCK_REALTIME) shows more than rank 0's, seconds, by the round
/// trip that was shortest (Cristian, 1989): exact to half of that. Collective; the same on every
/// rank.
std::vector<double> probe_clocks(const Communicator& world);

/// The node's name as MPI knows it, for every rank. Collective; the same on every rank.
std::vector<std::string> node_names(const Communicator& world);

}  // namespace longspan::parallel
