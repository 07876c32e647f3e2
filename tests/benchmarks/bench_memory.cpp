/// Peak memory of one training step on a long sequence against the formula (notes in
/// model/flops.hpp), for every keep mode, in memory and with
/// memory.offload=file: what the allocator handed out, and what the process really occupied. auto
/// has a budget half way between block and all. Usage: bench_memory [--tiny] [--tokens N]
/// [--section.key VALUE ...]
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "launcher/machine.hpp"
#include "launcher/memory_plan.hpp"
#include "launcher/options.hpp"
#include "model/adamw.hpp"
#include "model/flops.hpp"
#include "parallel/spill_file.hpp"
#include "support/temporary_directory.hpp"
#include "support/tiny_model.hpp"

using namespace longspan;

namespace {

/// In a process of its own, so that one mode's peak does not hide another's.
int measure(launcher::RunConfig c, std::int64_t tokens, const std::string& name) {
  launcher::set_threads(c.run.threads, Communicator::self());
  launcher::resolve(c, 256);
  const auto predict = [&](const model::ActivationPlan& plan) {
    return model::memory_estimate(c.model, c.memory, {1, tokens}, plan).total();
  };
  if (c.memory.keep == model::Keep::kAuto)
    c.memory.budget = (predict(model::uniform_plan(model::Keep::kAll, c.model.layers)) +
                       predict(model::uniform_plan(model::Keep::kBlock, c.model.layers))) /
                      2;
  const model::ActivationPlan plan =
      launcher::plan_memory(c, {1, tokens}, {c.memory.budget, "memory.budget"}).plan;
  const testing_support::TemporaryDirectory folder;
  SpillFile file(folder.path(), 0);
  const std::int64_t resident_before = launcher::peak_resident_bytes();
  model::Transformer transformer(c.model, c.attention, c.memory,
                                 shard_sequence(tokens, SequenceLayout::kContiguous, nullptr),
                                 model::cpu_backend(), plan);
  if (c.memory.offload == model::Offload::kFile) transformer.offload_to(file);
  transformer.parameters().initialize(1);
  model::AdamW optimizer(transformer.parameters(), c.optimizer, model::cpu_backend());
  testing_support::TinyBatch data(1, tokens, c.model.vocabulary, 1);
  const model::MicroBatch batch = data.slice(0, 1, transformer.shards().mine());
  transformer.train(batch, 1.0f / static_cast<float>(data.valid_targets()));
  optimizer.update(1e-3, optimizer.gradient_norm(), 1);
  const double predicted = static_cast<double>(predict(plan));
  const double allocated = static_cast<double>(cpu_device().peak_bytes());
  const double resident = static_cast<double>(launcher::peak_resident_bytes() - resident_before);
  constexpr double kMiB = 1048576;
  fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.3f} | {:.1f} | {:.3f} |\n", tokens, name,
             predicted / kMiB, allocated / kMiB, allocated / predicted, resident / kMiB,
             resident / predicted);
  std::fflush(stdout);
  if (c.memory.budget > 0 && allocated > static_cast<double>(c.memory.budget)) return 1;
  return allocated / predicted > 1.1 || allocated / predicted < 0.9;
}

}  // namespace

int main(int argc, char** argv) {
  std::int64_t tokens = 65536;
  std::vector<std::string> settings = {"--model.vocabulary", "256"};
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--tiny"))
      tokens = 4096;
    else if (!std::strcmp(argv[i], "--tokens") && i + 1 < argc)
      tokens = std::atoll(argv[++i]);
    else
      settings.emplace_back(argv[i]);
  }
  fmt::print(
      "| tokens | memory.keep, memory.offload | predicted MiB | allocated MiB | ratio | resident "
      "MiB (above the "
      "empty process) | ratio |\n");
  std::fflush(stdout);
  int failures = 0;
  for (const std::string offload : {"none", "file"})
    for (const std::string keep : {"all", "attention", "block", "auto"}) {
      const pid_t child = fork();
      if (child == 0) {
        auto arguments = settings;
        arguments.insert(arguments.end(), {"--memory.keep", keep, "--memory.offload", offload,
                                           "--data.sequence-length", std::to_string(tokens)});
        _exit(measure(launcher::parse_config(std::string(LONGSPAN_SOURCE_DIR) + "/configs/tiny.ini",
                                             arguments),
                      tokens, keep + ", " + offload));
      }
      int status = 0;
      waitpid(child, &status, 0);
      failures += status != 0;
    }
  return failures;
}
