#include "parallel/link_probe.hpp"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::parallel {
namespace {

constexpr int kTag = 71;
constexpr int kLatencyRounds = 101, kBandwidthRounds = 8, kClockRounds = 21;

double wall_clock() {
  using namespace std::chrono;
  return duration<double>(system_clock::now().time_since_epoch()).count();
}

void send(const void* data, std::int64_t bytes, int to, MPI_Comm comm) {
  check_mpi(MPI_Send(data, static_cast<int>(bytes), MPI_BYTE, to, kTag, comm), "MPI_Send");
}

void receive(void* data, std::int64_t bytes, int from, MPI_Comm comm) {
  check_mpi(MPI_Recv(data, static_cast<int>(bytes), MPI_BYTE, from, kTag, comm, MPI_STATUS_IGNORE),
            "MPI_Recv");
}

/// Seconds of each round trip of `bytes` there and `back` home; both ranks of the pair call it.
std::vector<double> round_trips(bool first, int peer, std::vector<char>& buffer, std::int64_t bytes,
                                std::int64_t back, int rounds, MPI_Comm comm) {
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    const double begin = MPI_Wtime();
    if (first) {
      send(buffer.data(), bytes, peer, comm);
      receive(buffer.data(), back, peer, comm);
    } else {
      receive(buffer.data(), bytes, peer, comm);
      send(buffer.data(), back, peer, comm);
    }
    seconds.push_back(MPI_Wtime() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

std::vector<std::pair<int, int>> pairs_of(int ranks) {
  std::vector<std::pair<int, int>> pairs;
  for (int rank = 0; rank + 1 < ranks; ++rank) pairs.emplace_back(rank, rank + 1);
  if (ranks > 2) pairs.emplace_back(ranks - 1, 0);
  if (ranks > 4) pairs.emplace_back(0, ranks / 2);
  return pairs;
}

}  // namespace

std::vector<LinkSpeed> probe_links(const Communicator& world, std::int64_t probe_bytes) {
  std::vector<LinkSpeed> links;
  if (world.size() == 1) return links;
  const MPI_Comm comm = world.raw();
  std::vector<char> buffer(static_cast<std::size_t>(probe_bytes), 1);
  for (const auto& [from, to] : pairs_of(world.size())) {
    world.barrier();
    LinkSpeed link{from, to};
    if (world.rank() == from || world.rank() == to) {
      const bool first = world.rank() == from;
      const int peer = first ? to : from;
      const auto small = round_trips(first, peer, buffer, 8, 8, kLatencyRounds, comm);
      link.latency_seconds = small[small.size() / 2] / 2;
      round_trips(first, peer, buffer, probe_bytes, 8, 1, comm);  // buffers are set up
      const auto large = round_trips(first, peer, buffer, probe_bytes, 8, kBandwidthRounds, comm);
      link.bytes_per_second =
          static_cast<double>(probe_bytes) / std::max(1e-9, large.front() - link.latency_seconds);
    }
    // The sender's view is everybody's.
    const double mine[2] = {link.latency_seconds, link.bytes_per_second};
    double all[2] = {mine[0], mine[1]};
    check_mpi(MPI_Bcast(all, 2, MPI_DOUBLE, from, comm), "MPI_Bcast");
    link.latency_seconds = all[0], link.bytes_per_second = all[1];
    links.push_back(link);
  }
  return links;
}

std::vector<double> probe_clocks(const Communicator& world) {
  std::vector<double> ahead(static_cast<std::size_t>(world.size()), 0.0);
  if (world.size() == 1) return ahead;
  const MPI_Comm comm = world.raw();
  for (int rank = 1; rank < world.size(); ++rank) {
    world.barrier();
    if (world.rank() == 0) {
      double shortest = std::numeric_limits<double>::infinity();
      for (int round = 0; round < kClockRounds; ++round) {
        const double sent = wall_clock();
        double theirs = 0;
        send(&sent, sizeof sent, rank, comm);
        receive(&theirs, sizeof theirs, rank, comm);
        const double received = wall_clock();
        if (received - sent >= shortest) continue;
        shortest = received - sent;
        ahead[static_cast<std::size_t>(rank)] = theirs - (sent + received) / 2;
      }
    } else if (world.rank() == rank) {
      for (int round = 0; round < kClockRounds; ++round) {
        double sent = 0;
        receive(&sent, sizeof sent, 0, comm);
        const double mine = wall_clock();
        send(&mine, sizeof mine, 0, comm);
      }
    }
  }
  check_mpi(MPI_Bcast(ahead.data(), world.size(), MPI_DOUBLE, 0, comm), "MPI_Bcast");
  return ahead;
}

std::vector<std::string> node_names(const Communicator& world) {
  char text[MPI_MAX_PROCESSOR_NAME];
  int length = 0;
  check_mpi(MPI_Get_processor_name(text, &length), "MPI_Get_processor_name");
  std::vector<std::string> names =
      world.gather(std::string(text, static_cast<std::size_t>(length)), 0);
  names.resize(static_cast<std::size_t>(world.size()));
  for (auto& name : names) name = world.broadcast(name, 0);
  return names;
}

}  // namespace longspan::parallel
