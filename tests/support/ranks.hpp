/// Assertions for tests on several ranks: agreed by all before anybody returns, so that none is
/// left in a collective.
#pragma once

#include <gtest/gtest.h>

#include "parallel/communicator.hpp"

namespace longspan::testing_support {
inline bool on_all_ranks(bool mine) {
  return Communicator::world().all_reduce_min(std::int64_t{mine}) == 1;
}
}  // namespace longspan::testing_support

/// Collective over the world. Fails on every rank if `condition` is false on any.
#define EXPECT_ALL_RANKS(condition)                                  \
  do {                                                               \
    const bool mine_ = (condition);                                  \
    EXPECT_TRUE(longspan::testing_support::on_all_ranks(mine_))      \
        << (mine_ ? "another rank: " : "this rank: ") << #condition; \
  } while (false)
