#include <vector>

#include "model/layer.hpp"
#include "parallel/host_copy.hpp"

namespace longspan::model {
namespace {

using Numbers = std::vector<Uploaded<std::int32_t>>;
struct RankPositions {
  Numbers of_rank;
};
struct RankDocuments {
  Numbers of_rank;
};
struct SequenceNumbers {
  Uploaded<std::int64_t> of_batch;
};

struct RankRuns {
  std::vector<PositionRuns> of_rank;
};

/// Of every rank; the numbers stay where they are while the pass lasts.
Numbers uploaded(const std::vector<std::vector<std::int32_t>>& ranks, Backend backend) {
  Numbers result;
  for (const auto& numbers : ranks)
    result.emplace_back(
        backend.device, backend.stream,
        View<const std::int32_t>(numbers.data(), static_cast<std::int64_t>(numbers.size())));
  return result;
}

}  // namespace

const std::int32_t* PassContext::positions_of(int rank, Backend backend) const {
  const auto& all = constant->get<RankPositions>(0, [&] {
    return std::make_unique<RankPositions>(RankPositions{uploaded(shards.positions, backend)});
  });
  return all.of_rank[static_cast<std::size_t>(rank)].data();
}

const std::int32_t* PassContext::documents_of(int rank, Backend backend) const {
  if (documents.empty()) return nullptr;
  const auto& all = own->get<RankDocuments>(0, [&] {
    return std::make_unique<RankDocuments>(RankDocuments{uploaded(documents, backend)});
  });
  return all.of_rank[static_cast<std::size_t>(rank)].data();
}

PositionRuns PassContext::runs_of(int rank) const {
  const auto& all = constant->get<RankRuns>(0, [&] {
    auto made = std::make_unique<RankRuns>();
    for (const auto& positions : shards.positions)
      made->of_rank.push_back(model::runs_of(positions));
    return made;
  });
  return all.of_rank[static_cast<std::size_t>(rank)];
}

PositionRuns runs_of(const std::vector<std::int32_t>& positions) {
  PositionRuns runs;
  for (const std::int32_t position : positions) {
    if (position < 0) return {};
    if (runs.count > 0) {
      PositionRuns::Run& last = runs.run[runs.count - 1];
      if (last.first_position + last.tokens == position) {
        ++last.tokens;
        continue;
      }
    }
    if (runs.count == 2) return {};
    runs.run[runs.count++] = {position, 1};
  }
  return runs;
}

Dropout PassContext::dropout(float probability, std::uint64_t key, Backend backend) const {
  if (!training || probability == 0.0f) return {};
  const auto& numbers = own->get<SequenceNumbers>(0, [&] {
    return std::make_unique<SequenceNumbers>(
        SequenceNumbers{{backend.device, backend.stream, batch.sequence_numbers_B}});
  });
  return {probability, key, numbers.of_batch.data(), own_positions(backend), own_tokens()};
}

}  // namespace longspan::model
