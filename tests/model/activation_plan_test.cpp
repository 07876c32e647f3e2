// timeout: 120
#include "model/activation_plan.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>

#include "model/adamw.hpp"
#include "model/flops.hpp"
#include "parallel/spill_file.hpp"
#include "support/temporary_directory.hpp"
#include "support/tiny_model.hpp"

namespace longspan::model {
namespace {

/// Calls visit(choice) for every way through the chain.
template <class Visit>
void for_every_choice(const ActivationChain& chain, const Visit& visit) {
  std::vector<std::size_t> choice(chain.options_L.size(), 0);
  for (;;) {
    visit(choice);
    std::size_t at = 0;
    while (at < choice.size() && ++choice[at] == chain.options_L[at].size()) choice[at++] = 0;
    if (at == choice.size()) return;
  }
}

/// What peak_bytes() says in one sweep, here as a history: every moment of a pass, all that is
/// there.
std::int64_t peak_by_history(const ActivationChain& chain, const std::vector<std::size_t>& choice) {
  const std::size_t layers = choice.size();
  const auto option = [&](std::size_t i) { return chain.options_L[i][choice[i]]; };
  std::int64_t peak = 0;
  const auto moment = [&](std::size_t newest, std::int64_t work) {
    std::int64_t there = chain.state_bytes + work + option(newest).moved_bytes;
    if (newest > 0) there += option(newest - 1).moved_bytes;
    for (std::size_t i = 0; i <= newest; ++i) there += option(i).kept_bytes;
    peak = std::max(peak, there);
  };
  for (std::size_t i = 0; i < layers; ++i) moment(i, option(i).work_bytes);
  moment(layers - 1, chain.loss_bytes);
  for (std::size_t i = layers; i-- > 0;) moment(i, option(i).work_bytes);
  return peak;
}

ActivationChain random_chain(std::mt19937& random) {
  const auto up_to = [&](int most) { return static_cast<std::int64_t>(random() % (most + 1)); };
  ActivationChain chain;
  chain.state_bytes = up_to(20), chain.loss_bytes = up_to(60), chain.step_seconds = 100;
  const auto layers = static_cast<std::size_t>(1 + up_to(5));
  const bool equal = up_to(1) == 0;  // like a real model, whose ties are many
  for (std::size_t i = 0; i < layers; ++i) {
    std::vector<LayerOption> options;
    for (std::int64_t o = up_to(2); o >= 0; --o)
      options.push_back({static_cast<Keep>(o), up_to(30), up_to(1) * up_to(12), up_to(25),
                         static_cast<double>(up_to(10))});
    chain.options_L.push_back(equal && i > 0 ? chain.options_L[0] : options);
  }
  return chain;
}

TEST(ActivationPlan, IsTheCheapestOfAllThatFit) {
  std::mt19937 random(11);
  int refused = 0, between = 0;
  for (int round = 0; round < 400; ++round) {
    const ActivationChain chain = random_chain(random);
    std::int64_t smallest = std::numeric_limits<std::int64_t>::max(), largest = 0;
    for_every_choice(chain, [&](const auto& choice) {
      ASSERT_EQ(peak_bytes(chain, choice), peak_by_history(chain, choice));
      smallest = std::min(smallest, peak_bytes(chain, choice));
      largest = std::max(largest, peak_bytes(chain, choice));
    });
    ASSERT_EQ(smallest_budget(chain), smallest);
    EXPECT_FALSE(cheapest_plan(chain, smallest - 1));
    for (int i = 0; i < 4; ++i) {
      const std::int64_t budget =
          smallest - 2 + static_cast<std::int64_t>(random() % static_cast<unsigned>(largest + 4));
      double best = std::numeric_limits<double>::infinity();
      for_every_choice(chain, [&](const auto& choice) {
        if (peak_bytes(chain, choice) > budget) return;
        double seconds = 0;
        for (std::size_t l = 0; l < choice.size(); ++l)
          seconds += chain.options_L[l][choice[l]].extra_seconds;
        best = std::min(best, seconds);
      });
      const auto chosen = cheapest_plan(chain, budget);
      ASSERT_EQ(chosen.has_value(), budget >= smallest);
      if (!chosen) {
        ++refused;
        continue;
      }
      between += budget < largest;
      EXPECT_DOUBLE_EQ(chosen->extra_share * chain.step_seconds, best);
      EXPECT_LE(chosen->peak_bytes, budget);
      // The same plan again, to the layer.
      EXPECT_EQ(cheapest_plan(chain, budget)->plan.keep_L, chosen->plan.keep_L);
    }
  }
  EXPECT_GT(refused, 20);
  EXPECT_GT(between, 200);
}

ModelConfig llama_like() {
  ModelConfig m;
  m.layers = 32, m.width = 4096, m.heads = 32, m.kv_heads = 8, m.head_size = 128;
  m.mlp_width = 14336, m.vocabulary = 128256;
  return m;
}

TEST(ActivationPlan, PricesTheModesAsTheFormulasDo) {
  const ModelConfig m = llama_like();
  const std::vector<Keep> modes = {Keep::kAll, Keep::kAttention, Keep::kBlock};
  for (const int context : {1, 8}) {
    const std::int64_t length = std::int64_t{1} << 20;
    const ActivationChain chain =
        activation_chain(m, {}, {}, modes, length, {1, length / context, context});
    const auto& options = chain.options_L[5];
    EXPECT_EQ(options[0].extra_seconds, 0);
    const NominalRates rates;
    const double rows = static_cast<double>(length / context);
    EXPECT_DOUBLE_EQ(options[1].extra_seconds,
                     2 * rows * 4096 * (4096 + 2 * 1024 + 4096 + 2 * 14336) / rates.linear_flops);
    // Block besides: 4 FLOPs a visible pair and channel.
    const double pairs = static_cast<double>(length) * (static_cast<double>(length) + 1) / 2;
    EXPECT_DOUBLE_EQ(options[2].extra_seconds - options[1].extra_seconds,
                     4 * pairs * 4096 / context / rates.attention_flops);
    // Where attention is nearly all, running it again is a third of forward and backward.
    const double share = 32 * options[2].extra_seconds / chain.step_seconds;
    EXPECT_GT(share, 0.31);
    EXPECT_LT(share, 0.35);
    for (std::size_t o = 0; o < modes.size(); ++o) {
      const LayerMemory bytes = layer_memory(m, {}, modes[o], {1, length / context, context});
      EXPECT_EQ(options[o].kept_bytes, bytes.kept);
      EXPECT_EQ(options[o].work_bytes, bytes.at_work);
    }
  }
}

TEST(ActivationPlan, PaysForTheRingAndTheExchange) {
  // One token a rank, so that the wire is what counts.
  const ModelConfig m = llama_like();
  AttentionConfig attention;
  const auto extra = [&](AttentionSchemeKind scheme, Keep keep) {
    attention.scheme = scheme;
    return activation_chain(m, attention, {}, {keep}, 8, {1, 1, 8, attention.scheme})
        .options_L[0][0]
        .extra_seconds;
  };
  const double link = NominalRates().link_bytes;
  const auto ring = [&](Keep keep) { return extra(AttentionSchemeKind::kRing, keep); };
  const auto ulysses = [&](Keep keep) { return extra(AttentionSchemeKind::kUlysses, keep); };
  // Seven ranks' keys and values in fp32.
  EXPECT_NEAR(ring(Keep::kBlock) - ring(Keep::kAttention), 7 * 4 * 2048 / link, 1e-12);
  EXPECT_NEAR(ulysses(Keep::kAttention) - ring(Keep::kAttention), 4 * 6144 * 7 / 8 / link, 1e-12);
  EXPECT_GT(ulysses(Keep::kBlock), ulysses(Keep::kAttention) + 4 * 4096 * 7 / 8 / link);
}

TEST(ActivationPlan, LongSequencesKeepAttentionBeforeAnythingElse) {
  const ModelConfig m = llama_like();
  const std::int64_t length = 1 << 20, tokens = length / 8;
  const std::vector<Keep> modes = {Keep::kAll, Keep::kAttention, Keep::kBlock};
  const ActivationChain chain = activation_chain(m, {}, {}, modes, length, {1, tokens, 8});
  const auto of_mode = [&](std::size_t o) {
    return peak_bytes(chain, std::vector<std::size_t>(32, o));
  };
  const auto chosen = cheapest_plan(chain, of_mode(1));
  ASSERT_TRUE(chosen);
  for (std::size_t i = 0; i + 1 < 32; ++i) EXPECT_EQ(chosen->plan.keep_L[i], Keep::kAttention) << i;
  // Half way to block some layers run the ring again, but no more than must.
  const std::int64_t middle = (of_mode(1) + of_mode(2)) / 2;
  const auto less = cheapest_plan(chain, middle);
  ASSERT_TRUE(less);
  const auto blocks = std::count(less->plan.keep_L.begin(), less->plan.keep_L.end(), Keep::kBlock);
  EXPECT_GE(blocks, 15);
  EXPECT_LE(blocks, 17);
  EXPECT_EQ(cheapest_plan(chain, of_mode(0))->extra_share, 0);
  EXPECT_EQ(to_string({{Keep::kBlock, Keep::kBlock, Keep::kAll}}),
            "block in layers 0-1, all in layer 2");
}

/// Peak bytes of one step, optimizer included, by `plan`.
std::int64_t measured_peak(const testing_support::Variant& v, const MemoryConfig& memory,
                           std::int64_t length, const ActivationPlan& plan) {
  const std::int64_t before = cpu_device().bytes_in_use();
  Transformer model(v.config, v.attention, memory,
                    shard_sequence(length, SequenceLayout::kContiguous, nullptr), cpu_backend(),
                    plan);
  model.parameters().initialize(1);
  const testing_support::TemporaryDirectory folder;
  SpillFile file(folder.path(), 0);
  if (memory.offload == Offload::kFile) model.offload_to(file);
  AdamW optimizer(model.parameters(), {}, cpu_backend());
  testing_support::TinyBatch data(2, length, v.config.vocabulary, 1);
  const MicroBatch batch = data.slice(0, 2, model.shards().mine());
  cpu_device().reset_peak();
  model.train(batch, 1.0f);
  optimizer.update(1e-3, optimizer.gradient_norm(), 1);
  return cpu_device().peak_bytes() - before;
}

TEST(ActivationPlan, TrainsWithinItsBudgetAndNearItsPrediction) {
  constexpr std::int64_t kLength = 384;
  for (testing_support::Variant v : testing_support::variants()) {
    if (v.documents) continue;
    v.config.layers = 5, v.config.max_positions = kLength;
    MemoryConfig memory;
    memory.keep = Keep::kAuto, memory.loss_chunk = 256;
    const ActivationChain chain =
        activation_chain(v.config, v.attention, memory,
                         {Keep::kAll, Keep::kAttention, Keep::kBlock}, kLength, {2, kLength});
    const std::int64_t least = smallest_budget(chain),
                       most = peak_bytes(chain, std::vector<std::size_t>(5, 0));
    ASSERT_LT(least, most);
    for (const int eighths : {0, 2, 4, 6}) {
      const std::int64_t budget = least + (most - least) * eighths / 8;
      const auto chosen = cheapest_plan(chain, budget);
      ASSERT_TRUE(chosen);
      SCOPED_TRACE(v.name + ": " + to_string(chosen->plan));
      const auto estimate = memory_estimate(v.config, memory, {2, kLength}, chosen->plan);
      EXPECT_EQ(estimate.total(), chosen->peak_bytes);
      const auto measured = measured_peak(v, memory, kLength, chosen->plan);
      EXPECT_NEAR(static_cast<double>(measured) / static_cast<double>(chosen->peak_bytes), 1, 0.05);
      EXPECT_LE(measured, budget);
    }
  }
}

TEST(ActivationPlan, OffloadNeedsTheMemoryThatIsPredicted) {
  constexpr std::int64_t kLength = 512;
  testing_support::Variant v = testing_support::variants()[1];
  v.config.layers = 12, v.config.mlp_width = 16, v.config.max_positions = kLength;
  MemoryConfig memory;
  memory.keep = Keep::kAuto, memory.loss_chunk = 64;
  std::map<std::pair<Offload, Keep>, std::int64_t> peaks;
  for (const Offload offload : {Offload::kNone, Offload::kFile})
    for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
      memory.offload = offload;
      const ActivationPlan plan = uniform_plan(keep, v.config.layers);
      const auto predicted = memory_estimate(v.config, memory, {2, kLength}, plan).total();
      const auto measured = measured_peak(v, memory, kLength, plan);
      peaks[{offload, keep}] = measured;
      SCOPED_TRACE(std::to_string(static_cast<int>(offload)) + " " + to_string(plan));
      EXPECT_LE(measured, predicted);
      EXPECT_NEAR(static_cast<double>(measured) / static_cast<double>(predicted), 1, 0.1);
      const ActivationChain chain =
          activation_chain(v.config, v.attention, memory, {keep}, kLength, {2, kLength});
      EXPECT_EQ(peak_bytes(chain, std::vector<std::size_t>(12, 0)), predicted);
    }
  // Of twelve layers two stay: the one at work and the one on its way.
  const std::int64_t rows_bytes = 2 * kLength * 4;
  const std::int64_t input = v.config.width,
                     attention = v.config.heads * v.config.head_size + v.config.heads;
  const auto saved = [&](Keep keep) {
    return static_cast<double>(peaks[{Offload::kNone, keep}] - peaks[{Offload::kFile, keep}]) /
           static_cast<double>(rows_bytes);
  };
  EXPECT_GE(saved(Keep::kBlock), 9.9 * static_cast<double>(input));
  EXPECT_GE(saved(Keep::kAttention), 9.9 * static_cast<double>(input + attention));
  EXPECT_GE(saved(Keep::kAll), 9.9 * static_cast<double>(input));

  // With a budget that nothing meets in memory, auto finds a plan that moves.
  memory.offload = Offload::kNone;
  const std::vector<Keep> modes = {Keep::kAll, Keep::kAttention, Keep::kBlock};
  const auto chain_with = [&](Offload offload) {
    memory.offload = offload;
    return activation_chain(v.config, v.attention, memory, modes, kLength, {2, kLength});
  };
  const std::int64_t budget = smallest_budget(chain_with(Offload::kNone)) - 1;
  const auto chosen = cheapest_plan(chain_with(Offload::kFile), budget);
  ASSERT_TRUE(chosen);
  EXPECT_LE(measured_peak(v, memory, kLength, chosen->plan), budget) << to_string(chosen->plan);
}

}  // namespace
}  // namespace longspan::model
