/// Tests that run on several ranks: rank 0 reports, every rank's failures count.
#include <gtest/gtest.h>

#include "parallel/communicator.hpp"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  longspan::MpiRuntime mpi;
  const auto world = longspan::Communicator::world();
  if (world.rank() != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
  }
  const int failed = RUN_ALL_TESTS();
  return static_cast<int>(world.all_reduce_max(std::int64_t{failed}));
}
