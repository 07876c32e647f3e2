/// What a configuration may not be, what 0 becomes, and that the files in configs/ are what they
/// say.
#include "launcher/run_config.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "launcher/options.hpp"
#include "model/flops.hpp"

namespace longspan::launcher {
namespace {

TEST(RunConfig, TheDefaultsAreFine) {
  EXPECT_TRUE(problems_of(RunConfig{}).empty());
  RunConfig named;
  named.run.name = "first";
  EXPECT_EQ(named.directory(), "runs/first");
  named.run.directory = "/scratch/x";
  EXPECT_EQ(named.directory(), "/scratch/x");
}

TEST(RunConfig, EveryRuleIsReportedWithItsValues) {
  struct Case {
    std::function<void(RunConfig&)> change;
    std::string says;
  };
  const std::vector<Case> cases = {
      {[](auto& c) { c.run.name = "a/b"; }, "run.name=a/b: "},
      {[](auto& c) { c.run.device = "gpu"; }, "run.device=gpu: it must be auto, cpu or cuda"},
      {[](auto& c) { c.run.threads = -1; }, "run.threads=-1: it must be at least 0"},
      {[](auto& c) { c.model.layers = 0; }, "model.layers=0: it must be at least 1"},
      {[](auto& c) { c.model.width = 0; }, "model.width=0: "},
      {[](auto& c) { c.model.heads = -4; }, "model.heads=-4: "},
      {[](auto& c) { c.model.kv_heads = 3; },
       "model.heads=4 is not a multiple of model.kv-heads=3"},
      {[](auto& c) { c.model.kv_heads = 8; },
       "model.heads=4 is not a multiple of model.kv-heads=8"},
      {[](auto& c) { c.model.heads = 6; }, "model.width=256 is not a multiple of model.heads=6"},
      {[](auto& c) { c.model.width = 24; },
       "model.width=24 / model.heads=4 gives heads of 6 channels"},
      {[](auto& c) { c.model.head_size = 30; }, "model.head-size=30: it must be a multiple of 4"},
      {[](auto& c) { c.model.heads = 1, c.model.width = 512; }, "gives heads of 512 channels"},
      {[](auto& c) { c.model.norm_epsilon = 0; }, "model.norm-epsilon=0: "},
      {[](auto& c) { c.model.rope_theta = 0; }, "model.rope-theta=0: "},
      {[](auto& c) {
         c.model.position = model::PositionKind::kLearned, c.model.max_positions = 512;
       },
       "model.max-positions=512 is less than data.sequence-length=1024"},
      {[](auto& c) {
         c.model.position = model::PositionKind::kSinusoidal, c.model.width = 255,
         c.model.head_size = 64;
       },
       "model.width=255 with model.position=sinusoidal"},
      {[](auto& c) { c.model.dropout = 1; }, "model.dropout=1: "},
      {[](auto& c) { c.model.dropout = -0.5f; }, "model.dropout=-0.5: "},
      {[](auto& c) { c.model.vocabulary = -1; }, "model.vocabulary=-1: "},
      {[](auto& c) { c.data.sequence_length = 0; }, "data.sequence-length=0: "},
      {[](auto& c) { c.data.sequence_length = std::int64_t{1} << 31; },
       "data.sequence-length=2147483648: "},
      {[](auto& c) { c.mesh.data = -2; }, "mesh.data=-2: "},
      {[](auto& c) { c.mesh.context = -2; }, "mesh.context=-2: "},
      {[](auto& c) { c.mesh.context = 2000; },
       "mesh.context=2000 ranks cannot share data.sequence-length=1024"},
      {[](auto& c) { c.mesh.tensor = -2; }, "mesh.tensor=-2: "},
      {[](auto& c) { c.mesh.tensor = 8; },
       "model.heads=4 cannot be shared evenly by mesh.tensor=8 ranks: set it to 8, or "
       "mesh.tensor=4, which fits the whole model"},
      {[](auto& c) { c.mesh.tensor = 4, c.model.mlp_width = 90; },
       "model.mlp-width=90 cannot be shared evenly by mesh.tensor=4 ranks: set it to 92, or "
       "mesh.tensor=2, which fits the whole model"},
      {[](auto& c) { c.mesh.tensor = 2, c.model.vocabulary = 257; },
       "model.vocabulary=257 cannot be shared evenly by mesh.tensor=2 ranks: set it to 258, or "
       "mesh.tensor=1, which fits the whole model"},
      {[](auto& c) {
         c.mesh.tensor = 4, c.model.heads = 12, c.model.kv_heads = 6, c.model.head_size = 32;
       },
       "model.kv-heads=6 cannot be shared evenly by mesh.tensor=4 ranks: set it to 8, or "
       "mesh.tensor=2, which fits the whole model"},
      {[](auto& c) { c.attention.window = -1; }, "attention.window=-1: "},
      {[](auto& c) { c.memory.loss_chunk = -1; }, "memory.loss-chunk=-1: "},
      {[](auto& c) { c.memory.budget = -1; }, "memory.budget=-1: "},
      {[](auto& c) { c.memory.mlp_chunk = -1; }, "memory.mlp-chunk=-1: "},
      {[](auto& c) { c.train.steps = 0; }, "train.steps=0: "},
      {[](auto& c) { c.train.stop_after = -1; }, "train.stop-after=-1: "},
      {[](auto& c) { c.train.micro_batch = 0; }, "train.micro-batch=0: "},
      {[](auto& c) { c.train.micro_batch = 4, c.train.global_batch = 6; },
       "train.global-batch=6 is not a multiple of train.micro-batch=4"},
      {[](auto& c) { c.train.micro_batch = 2, c.train.global_batch = 6, c.mesh.data = 2; },
       "train.global-batch=6 is not a multiple of train.micro-batch=2 * mesh.data=2"},
      {[](auto& c) { c.train.validate_every = -1; }, "train.validate-every=-1: "},
      {[](auto& c) { c.train.validate_sequences = 0; }, "train.validate-sequences=0: "},
      {[](auto& c) { c.train.patience = 2; }, "train.patience=2 counts validations"},
      {[](auto& c) { c.optimizer.learning_rate = 0; }, "optimizer.learning-rate=0: "},
      {[](auto& c) { c.optimizer.minimum_learning_rate = 1; },
       "optimizer.minimum-learning-rate=1 is above"},
      {[](auto& c) { c.optimizer.warmup_steps = -1; }, "optimizer.warmup-steps=-1: "},
      {[](auto& c) { c.optimizer.weight_decay = -1; }, "optimizer.weight-decay=-1: "},
      {[](auto& c) { c.optimizer.clip = -1; }, "optimizer.clip=-1: "},
      {[](auto& c) { c.optimizer.beta1 = 1; }, "optimizer.beta1=1: "},
      {[](auto& c) { c.optimizer.beta2 = -0.1; }, "optimizer.beta2=-0.1: "},
      {[](auto& c) { c.optimizer.epsilon = 0; }, "optimizer.epsilon=0: "},
      {[](auto& c) { c.checkpoint.every = -1; }, "checkpoint.every=-1: "},
      {[](auto& c) { c.checkpoint.keep = -1; }, "checkpoint.keep=-1: "},
      {[](auto& c) { c.checkpoint.resume = ""; }, "checkpoint.resume=: "},
      {[](auto& c) { c.log.every = 0; }, "log.every=0: "},
  };
  for (const Case& one : cases) {
    RunConfig config;
    one.change(config);
    const auto found = problems_of(config);
    ASSERT_EQ(found.size(), 1u) << one.says << (found.empty() ? "" : ": " + found[0]);
    EXPECT_NE(found[0].find(one.says), std::string::npos) << found[0];
    EXPECT_EQ(found[0].find('\n'), std::string::npos);
  }
}

TEST(RunConfig, AllThatTensorRanksCannotShareIsSaidAtOnce) {
  RunConfig config;
  config.mesh.tensor = 3;
  config.model.vocabulary = 256;
  const auto found = problems_of(config);
  ASSERT_EQ(found.size(), 4u);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const char* names[] = {"model.heads=4 ", "model.kv-heads=4 ", "model.mlp-width=704 ",
                           "model.vocabulary=256 "};
    EXPECT_EQ(found[i].rfind(names[i], 0), 0u) << found[i];
    EXPECT_NE(found[i].find("mesh.tensor=2, which"), std::string::npos) << found[i];
  }
}

TEST(RunConfig, WhatIsUnusualButRightPasses) {
  const std::vector<std::function<void(RunConfig&)>> changes = {
      [](auto& c) { c.model.head_size = 32; },  // heads need not fill the width
      [](auto& c) { c.model.heads = 6, c.model.head_size = 64; },
      [](auto& c) { c.model.kv_heads = 1; },
      [](auto& c) { c.model.kv_heads = 2, c.mesh.tensor = 4; },  // two ranks hold the same head
      [](auto& c) { c.model.heads = 1; },                        // 256 channels
      [](auto& c) { c.data.sequence_length = 1; },
      [](auto& c) { c.data.sequence_length = 1001, c.mesh.context = 7; },
      [](auto& c) {
        c.model.position = model::PositionKind::kLearned, c.model.max_positions = 1024;
      },
      [](auto& c) { c.attention.window = 1 << 30; },
      [](auto& c) { c.mesh.data = 0, c.mesh.context = 0; },
      [](auto& c) {
        c.optimizer.schedule = model::ScheduleKind::kConstant,
        c.optimizer.minimum_learning_rate = 1;
      },
      [](auto& c) { c.optimizer.clip = 0, c.optimizer.beta1 = 0; },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    RunConfig config;
    changes[i](config);
    const auto found = problems_of(config);
    EXPECT_TRUE(found.empty()) << i << ": " << found[0];
  }
}

TEST(RunConfig, AllProblemsAreReportedTogether) {
  RunConfig c;
  c.model.layers = 0, c.train.steps = 0, c.log.every = 0;
  EXPECT_EQ(problems_of(c).size(), 3u);
}

TEST(RunConfig, ZeroIsWorkedOut) {
  RunConfig c;
  resolve(c, 256);
  EXPECT_EQ(c.model.kv_heads, 4);
  EXPECT_EQ(c.model.head_size, 64);
  EXPECT_EQ(c.model.mlp_width, 704);  // 8/3 * 256 = 682.7
  EXPECT_EQ(c.model.max_positions, 1024);
  EXPECT_EQ(c.model.vocabulary, 256);
  EXPECT_TRUE(problems_of(c).empty());

  RunConfig gelu;
  gelu.model.mlp = model::MlpKind::kGelu, gelu.model.kv_heads = 2, gelu.model.head_size = 32;
  resolve(gelu, 257);
  EXPECT_EQ(gelu.model.mlp_width, 1024);
  EXPECT_EQ(gelu.model.kv_heads, 2);
  EXPECT_EQ(gelu.model.head_size, 32);
  EXPECT_EQ(gelu.model.vocabulary, 320);

  RunConfig again = c;
  resolve(again, 999);
  EXPECT_EQ(to_ini(again), to_ini(c));
}

TEST(RunConfig, TheFilesInConfigsAreValidAndAreTheModelsTheyName) {
  // Parameters of the published models; GPT-2's vocabulary is padded by 47 rows of 768.
  const std::map<std::string, std::int64_t> parameters = {{"gpt2-124m.ini", 124439808 + 47 * 768},
                                                          {"llama-1b-128k.ini", 1235814400},
                                                          {"llama-8b-1m.ini", 8030261248}};
  std::set<std::string> seen;
  for (const auto& entry : std::filesystem::directory_iterator(LONGSPAN_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".ini") continue;
    const std::string name = entry.path().filename();
    RunConfig c = parse_config(entry.path(), {});
    seen.insert(name);
    EXPECT_EQ(c.run.name + ".ini", name);
    EXPECT_TRUE(std::filesystem::path(c.data.path).is_relative()) << name;
    EXPECT_FALSE(c.data.path.empty()) << name;
    resolve(c, 256);
    EXPECT_TRUE(problems_of(c).empty()) << name;
    if (parameters.count(name) != 0) {
      EXPECT_EQ(model::parameter_count(c.model), parameters.at(name)) << name;
    }
  }
  EXPECT_EQ(seen, (std::set<std::string>{"tiny.ini", "code-8k.ini", "gpt2-124m.ini",
                                         "llama-1b-128k.ini", "llama-8b-1m.ini"}));
}

TEST(RunConfig, TheQuickstartIsAsLargeAsItsCommentSays) {
  RunConfig c = parse_config(LONGSPAN_SOURCE_DIR "/configs/code-8k.ini", {});
  resolve(c, 256);
  EXPECT_NEAR(static_cast<double>(model::parameter_count(c.model)), 1.8e6, 0.05e6);
  const double flops = model::model_flops(c.model, c.attention, 1, c.data.sequence_length).total();
  EXPECT_NEAR(
      flops, 1.27e11,
      0.05e11);  // 12 instead of 14 for the attention: MFU does not count what backward repeats
}

}  // namespace
}  // namespace longspan::launcher
