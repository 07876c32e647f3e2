/// `longspan generate`: text from a checkpoint, token by token.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>

#include "io/checkpoint_reader.hpp"
#include "io/token_dataset.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "model/decoder.hpp"
#include "model/sampling.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// A run directory or its checkpoints folder stands for its newest checkpoint.
std::string checkpoint_at(const std::string& path) {
  for (const std::string& folder : {path + "/checkpoints", path})
    if (const std::string newest = io::newest_checkpoint(folder); !newest.empty()) return newest;
  return path;
}

/// The model of a checkpoint, whole on this process.
struct Loaded {
  RunConfig config;
  io::Tokenizer tokenizer;
  std::unique_ptr<model::Transformer> transformer;
};

Loaded load(const std::string& path) {
  io::CheckpointReader reader(path);
  RunConfig config = parse_ini(reader.facts().config);
  Loaded loaded{config, io::Tokenizer(reader.facts().tokenizer), nullptr};
  loaded.transformer = std::make_unique<model::Transformer>(
      config.model, config.attention, config.memory,
      shard_sequence(config.data.sequence_length, SequenceLayout::kContiguous, nullptr), model::cpu_backend());
  const auto& store = loaded.transformer->parameters();
  for (const ShardedArray& array : store.arrays("model/", store.weights())) reader.read(array);
  return loaded;
}

std::string prompt_of(const Arguments& args) {
  if (!args.has("prompt-file")) return args.text("prompt");
  std::ifstream file(args.text("prompt-file"), std::ios::binary);
  if (!file) fail_usage("cannot read the prompt file {}", args.text("prompt-file"));
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

ExitStatus generate_command(const std::vector<std::string>& arguments) {
  const Arguments args(arguments, "generate", "writes text with the model of a checkpoint",
                       {{"checkpoint", "PATH", "a checkpoint, or a run directory: its newest one"},
                        {"prompt", "TEXT", "what to continue"},
                        {"prompt-file", "FILE", "read the prompt from a file instead"},
                        {"tokens", "N", "how many tokens to write", "256"},
                        {"temperature", "T", "0 = always the most probable token", "0.8"},
                        {"top-k", "K", "choose among the K most probable tokens; 0 = all", "0"},
                        {"top-p", "P", "choose among the most probable tokens that together reach P", "1"},
                        {"seed", "S", "of the random choice", "1"},
                        {"threads", "N", "0 = all cores", "0"}},
                       "longspan generate --checkpoint runs/code --prompt 'template <class T>' --temperature 0.7");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.has("checkpoint")) fail_usage("generate needs --checkpoint PATH, a checkpoint or a run directory");
  if (!args.has("prompt") && !args.has("prompt-file")) fail_usage("generate needs --prompt TEXT or --prompt-file FILE");
  model::SamplingConfig sampling;
  sampling.temperature = args.number("temperature");
  sampling.top_k = args.integer("top-k");
  sampling.top_p = args.number("top-p");
  sampling.seed = static_cast<std::uint64_t>(args.integer("seed"));
  const std::int64_t count = args.integer("tokens");
  if (sampling.temperature < 0 || sampling.top_k < 0 || sampling.top_p <= 0 || sampling.top_p > 1 || count < 1)
    fail_usage("--temperature={} --top-k={} --top-p={} --tokens={}: they must be >= 0, >= 0, in (0, 1] and >= 1",
               sampling.temperature, sampling.top_k, sampling.top_p, count);
  set_threads(static_cast<int>(args.integer("threads")), Communicator::self());

  const Loaded loaded = load(checkpoint_at(args.text("checkpoint")));
  const std::string prompt = prompt_of(args);
  std::vector<std::int32_t> tokens = loaded.tokenizer.encode(prompt);
  if (tokens.empty()) fail_usage("the prompt is empty: give at least one character");
  const std::int64_t capacity = loaded.config.data.sequence_length;
  const std::int64_t room = capacity - static_cast<std::int64_t>(tokens.size());
  if (count > room)
    fail_usage("{} prompt tokens and --tokens={} exceed the {} tokens this model was trained on (data.sequence-length): ask for at "
               "most {}", tokens.size(), count, capacity, std::max<std::int64_t>(0, room));

  model::Decoder decoder(*loaded.transformer, loaded.config.attention, static_cast<std::int64_t>(tokens.size()) + count);
  std::vector<float> logits = decoder.append(tokens);
  // What is new in the text of all tokens so far: ids are separated, letters are not.
  std::size_t printed = loaded.tokenizer.decode(tokens).size();
  std::cout << loaded.tokenizer.decode(tokens) << std::flush;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t token =
        model::sample_token(logits, loaded.tokenizer.vocabulary(), sampling, static_cast<std::uint64_t>(i));
    tokens.push_back(token);
    const std::string text = loaded.tokenizer.decode(tokens);
    std::cout << text.substr(std::exchange(printed, text.size())) << std::flush;
    if (i + 1 < count) logits = decoder.append({token});
  }
  std::cout << '\n';
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
