/// What layers share of a pass: uploaded once, and true.
#include <gtest/gtest.h>

#include <vector>

#include "model/layer.hpp"
#include "parallel/host_copy.hpp"
#include "support/guarded_device.hpp"

namespace longspan::model {
namespace {

using Positions = std::vector<std::int32_t>;

std::vector<std::pair<std::int64_t, std::int64_t>> runs(const Positions& positions) {
  const PositionRuns found = runs_of(positions);
  std::vector<std::pair<std::int64_t, std::int64_t>> result;
  for (int r = 0; r < found.count; ++r)
    result.emplace_back(found.run[r].first_position, found.run[r].tokens);
  return result;
}

TEST(PositionRuns, AreThoseOfContiguousAndZigzagShardsWithoutPadding) {
  using Runs = std::vector<std::pair<std::int64_t, std::int64_t>>;
  EXPECT_EQ(runs({4, 5, 6}), (Runs{{4, 3}}));
  EXPECT_EQ(runs({0, 1, 6, 7}), (Runs{{0, 2}, {6, 2}}));
  EXPECT_EQ(runs({0, 1, 4, 5, 2, 3}), Runs());  // of two zigzag shards
  EXPECT_EQ(runs({6, 7, -1}), Runs());
  EXPECT_EQ(runs({}), Runs());
}

TEST(PassContext, UploadsConstantArraysOnceAndThoseOfThePassOncePerPass) {
  testing_support::GuardedDevice& device = testing_support::guarded_device();
  const Backend backend = testing_support::guarded_compute().backend;
  const SequenceShards shards = shard_sequence(6, SequenceLayout::kContiguous, nullptr);
  const std::vector<std::int64_t> numbers = {40, 41};
  MicroBatch batch;
  batch.sequences = 2, batch.sequence_numbers_B = {numbers.data(), 2};
  const auto constant = std::make_shared<PassCache>();
  const std::int64_t before = device.bytes_in_use();
  const std::int32_t* positions = nullptr;
  for (int number = 0; number < 2; ++number) {
    PassContext pass{shards, batch, true, {{0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2}}, {}, constant};
    const std::int32_t* const mine = pass.positions_of(0, backend);
    if (number == 0) positions = mine;
    EXPECT_EQ(mine, positions);
    const std::int32_t* const documents = pass.documents_of(0, backend);
    EXPECT_EQ(documents, pass.documents_of(0, backend));
    const OnHost<std::int32_t> read(device, backend.stream,
                                    View<const std::int32_t>(documents, 12));
    EXPECT_EQ(Positions(read.view().begin(), read.view().end()), pass.documents[0]);
    const Dropout dropout = pass.dropout(0.5f, 7, backend);
    EXPECT_EQ(dropout.sequences, pass.dropout(0.5f, 8, backend).sequences);
    EXPECT_TRUE(device.owns(dropout.sequences) && device.owns(dropout.positions));
    EXPECT_EQ(pass.dropout(0.0f, 7, backend).sequences, nullptr);
    // Positions, documents, and the numbers of the sequences.
    EXPECT_EQ(device.bytes_in_use() - before, 6 * 4 + 12 * 4 + 2 * 8);
  }
  EXPECT_EQ(device.bytes_in_use() - before, 6 * 4);  // the pass has taken its own along
  const PassContext evaluation{shards, batch, false, {}};
  EXPECT_EQ(evaluation.dropout(0.5f, 7, backend).probability, 0.0f);
  EXPECT_EQ(evaluation.documents_of(0, backend), nullptr);
}

}  // namespace
}  // namespace longspan::model
