/// A training step of a configuration on one rank against the sgemm peak of the same run: forward,
/// backward, loss and optimizer on random tokens. Checks that the loss falls. Usage: bench_training
/// [--tiny] [--steps N] [--config FILE] [--section.key VALUE ...]
#include <fmt/format.h>
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "model/adamw.hpp"
#include "model/flops.hpp"
#include "support/peak.hpp"
#include "support/tiny_model.hpp"

using namespace longspan;

int main(int argc, char** argv) {
  std::string file = std::string(LONGSPAN_SOURCE_DIR) + "/configs/gpt2-124m.ini";
  std::vector<std::string> settings = {"--train.micro-batch", "4", "--model.vocabulary", "50304"};
  int steps = 5;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--tiny")) {
      file = std::string(LONGSPAN_SOURCE_DIR) + "/configs/tiny.ini";
      settings = {"--model.vocabulary", "256"};
      steps = 3;
    } else if (!std::strcmp(argv[i], "--config") && i + 1 < argc) {
      file = argv[++i];
      settings.clear();
    } else if (!std::strcmp(argv[i], "--steps") && i + 1 < argc) {
      steps = std::atoi(argv[++i]);
    } else {
      settings.emplace_back(argv[i]);
    }
  }
  launcher::RunConfig c = launcher::parse_config(file, settings);
  const int threads = launcher::set_threads(c.run.threads, Communicator::self());
  launcher::resolve(c, 256);
  const model::Backend backend = model::cpu_backend();
  model::Transformer transformer(
      c.model, c.attention, c.memory,
      shard_sequence(c.data.sequence_length, SequenceLayout::kContiguous, nullptr), backend);
  transformer.parameters().initialize(1);
  model::AdamW optimizer(transformer.parameters(), c.optimizer, backend);
  testing_support::TinyBatch data(c.train.micro_batch, c.data.sequence_length, c.model.vocabulary,
                                  1);
  const model::MicroBatch batch = data.slice(0, c.train.micro_batch, transformer.shards().mine());
  const double tokens = static_cast<double>(c.train.micro_batch * c.data.sequence_length);

  std::vector<double> seconds, update_seconds, peaks;
  double first_loss = 0, loss = 0;
  for (int step = 1; step <= steps + 1; ++step) {
    // The machine's speed drifts: the peak is taken between the steps.
    peaks.push_back(testing_support::sgemm_peak(2));
    const auto begin = std::chrono::steady_clock::now();
    loss = transformer.train(batch, 1.0f / static_cast<float>(data.valid_targets())) /
           static_cast<double>(data.valid_targets());
    const auto middle = std::chrono::steady_clock::now();
    optimizer.update(1e-3, optimizer.gradient_norm(), step);
    const auto end = std::chrono::steady_clock::now();
    if (step == 1) {
      first_loss = loss;
      continue;
    }
    seconds.push_back(std::chrono::duration<double>(end - begin).count());
    update_seconds.push_back(std::chrono::duration<double>(end - middle).count());
  }
  if (!(loss < first_loss)) {
    fmt::print(stderr, "the loss did not fall on the same batch: {} -> {}\n", first_loss, loss);
    return 1;
  }
  const model::StepFlops flops =
      model::model_flops(c.model, c.attention, c.train.micro_batch, c.data.sequence_length);
  const double step_seconds = testing_support::median(seconds),
               peak = testing_support::median(peaks);
  fmt::print("{}\n", launcher::version_line());
  fmt::print("{}: {} layers, width {}, {} heads, vocabulary {}, {} x {} tokens, {} threads, {}\n",
             file, c.model.layers, c.model.width, c.model.heads, c.model.vocabulary,
             c.train.micro_batch, c.data.sequence_length, threads,
             c.model.precision == model::Precision::kBf16 ? "bf16" : "fp32");
  fmt::print(
      "FLOPs of a step: {:.4g} linear (6 per weight and token) + {:.4g} attention (12 per visible "
      "pair and channel)\n",
      flops.linear, flops.attention);
  fmt::print(
      "| step, median s | of it optimizer s | tokens/s | GFLOP/s | sgemm 2048^3 GFLOP/s | share of "
      "it |\n");
  fmt::print("| {:.3f} | {:.3f} | {:.0f} | {:.1f} | {:.1f} | {:.1f} % |\n", step_seconds,
             testing_support::median(update_seconds), tokens / step_seconds,
             flops.total() / step_seconds * 1e-9, peak * 1e-9,
             100 * flops.total() / step_seconds / peak);
  return 0;
}
