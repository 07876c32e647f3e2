// ranks: 1 2 3
/// A gradient that is not finite is named alike whoever owns it.
#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "io/prepare_dataset.hpp"
#include "launcher/training_run.hpp"
#include "support/ranks.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

RunConfig tiny(const std::string& folder, model::OptimizerShard shard) {
  RunConfig c;
  c.run.directory = folder + "/run", c.run.threads = 1;
  c.data.path = folder + "/d.h5", c.data.sequence_length = 16;
  c.model.layers = 2, c.model.width = 16, c.model.heads = 2;
  c.train.validate_every = 0;
  c.optimizer.shard = shard;
  return c;
}

TEST(Diagnose, NamesTheGradientNearestToTheLossUnderEveryMode) {
  const auto world = Communicator::world();
  const testing_support::TemporaryDirectory own;
  const std::string folder = world.broadcast(own.path(), 0);
  if (world.rank() == 0) {
    std::ofstream(folder + "/text.txt") << std::string(4000, 'a') << std::string(4000, 'b');
    io::PrepareRequest request;
    request.inputs = {folder + "/text.txt"};
    request.output = folder + "/d.h5";
    io::prepare_dataset(request, [](const char*, std::int64_t, std::int64_t) {});
  }
  world.barrier();
  for (const auto shard : {model::OptimizerShard::kNone, model::OptimizerShard::kStates,
                           model::OptimizerShard::kGradients, model::OptimizerShard::kParameters}) {
    TrainingRun run(tiny(folder, shard), world, cpu_compute());
    run.restore();
    const std::vector<io::Batch> batches = {run.loader().next()};
    run.sharding().begin_micro_batch(true);
    run.transformer().train(run.micro_batch(batches[0]), 1.0f);
    run.sharding().finish_gradients();
    EXPECT_ALL_RANKS(run.diagnose(batches).find("nothing bad") == 0);

    // Two bad elements, in the first and the last third of a matrix: several ranks have one each.
    const auto& parameters = run.transformer().parameters().parameters();
    for (const auto& p : parameters) {
      if (p.name != "blocks.1.mlp.up.weight" && p.name != "blocks.0.mlp.up.weight") continue;
      for (const std::int64_t at : {p.offset + 1, p.offset + p.count() - 1})
        for (const model::OwnedRange& mine : run.sharding().owned())
          if (at >= mine.range.begin && at < mine.range.end())
            mine.gradient[at - mine.range.begin] = std::numeric_limits<float>::infinity();
    }
    EXPECT_ALL_RANKS(run.diagnose(batches) == "gradient of blocks.1.mlp.up.weight");
  }
  world.barrier();
}

}  // namespace
}  // namespace longspan::launcher
