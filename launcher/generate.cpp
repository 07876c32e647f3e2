/// `longspan generate`: text from a checkpoint, token by token.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>

#include "io/checkpoint_reader.hpp"
#include "io/token_dataset.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/compute.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "launcher/resume.hpp"
#include "model/decoder.hpp"
#include "model/sampling.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// The model of a checkpoint, whole on this process.
struct Loaded {
  RunConfig config;
  io::Tokenizer tokenizer;
  Compute compute;
  std::unique_ptr<model::Transformer> transformer;
};

Loaded load(const std::string& path, const std::string& device) {
  io::CheckpointReader reader(path);
  RunConfig config = parse_ini(reader.facts().config);
  config.memory = {};  // nothing is trained here
  config.run.device = device;
  Loaded loaded{config, io::Tokenizer(reader.facts().tokenizer),
                open_compute(config.run, Communicator::self()), nullptr};
  loaded.transformer = std::make_unique<model::Transformer>(
      config.model, config.attention, config.memory,
      shard_sequence(config.data.sequence_length, SequenceLayout::kContiguous, nullptr),
      loaded.compute.backend);
  const auto& store = loaded.transformer->parameters();
  reader.read(store.arrays("model/", store.weights()));
  return loaded;
}

std::string prompt_of(const Arguments& args) {
  if (!args.has("prompt-file")) return args.text("prompt");
  const std::string path = args.text("prompt-file");
  if (std::filesystem::is_directory(path))
    fail_usage("cannot read the prompt file {}: it is a folder", path);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_usage("cannot read the prompt file {}: {}", path, std::strerror(errno));
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Ids are numbers that the user gives: one beyond the embedding would read some other memory.
void require_known(const std::vector<std::int32_t>& tokens, std::int64_t vocabulary) {
  const auto largest = std::max_element(tokens.begin(), tokens.end());
  if (largest != tokens.end() && *largest >= vocabulary)
    fail_usage("the prompt has the token id {}: this model knows ids up to {}", *largest,
               vocabulary - 1);
}

}  // namespace

ExitStatus generate_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "generate", "writes text with the model of a checkpoint",
      {{"checkpoint", "PATH", "a checkpoint, or a run directory: its newest one"},
       {"prompt", "TEXT", "what to continue"},
       {"prompt-file", "FILE", "read the prompt from a file instead"},
       {"tokens", "N", "how many tokens to write", "256"},
       {"temperature", "T", "0 = always the most probable token", "0.8"},
       {"top-k", "K", "choose among the K most probable tokens; 0 = all", "0"},
       {"top-p", "P", "choose among the most probable tokens that together reach P", "1"},
       {"seed", "S", "of the random choice", "1"},
       {"threads", "N", "0 = all cores", "0"},
       {"device", "NAME", "auto, cpu or cuda", "auto"}},
      "longspan generate --checkpoint runs/code --prompt 'template <class T>' --temperature 0.7");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.has("checkpoint"))
    fail_usage("generate needs --checkpoint PATH, a checkpoint or a run directory");
  if (!args.has("prompt") && !args.has("prompt-file"))
    fail_usage("generate needs --prompt TEXT or --prompt-file FILE");
  if (args.has("prompt") && args.has("prompt-file"))
    fail_usage("--prompt and --prompt-file: only one of them can be continued");
  model::SamplingConfig sampling;
  sampling.temperature = args.number("temperature");
  sampling.top_k = args.integer("top-k");
  sampling.top_p = args.number("top-p");
  sampling.seed = static_cast<std::uint64_t>(args.integer("seed"));
  const std::int64_t count = args.integer("tokens");
  const std::int64_t threads = args.integer("threads");
  const bool fine = std::isfinite(sampling.temperature) && sampling.temperature >= 0 &&
                    sampling.top_k >= 0 && sampling.top_p > 0 && sampling.top_p <= 1 &&
                    count >= 1 && threads >= 0;
  if (!fine)
    fail_usage(
        "--temperature={} --top-k={} --top-p={} --tokens={} --threads={}: they must be >= 0, >= 0, "
        "in (0, 1], >= 1 and >= 0",
        sampling.temperature, sampling.top_k, sampling.top_p, count, threads);
  set_threads(static_cast<int>(std::min<std::int64_t>(threads, available_cores())),
              Communicator::self());

  const Loaded loaded = load(checkpoint_at(args.text("checkpoint")), args.text("device"));
  const std::string prompt = prompt_of(args);
  std::vector<std::int32_t> tokens = loaded.tokenizer.encode(prompt);
  if (tokens.empty()) fail_usage("the prompt is empty: give at least one character");
  require_known(tokens, loaded.config.model.vocabulary);
  const std::int64_t capacity = loaded.config.data.sequence_length;
  const std::int64_t room = capacity - static_cast<std::int64_t>(tokens.size());
  if (room < 1)
    fail_usage(
        "{} prompt tokens leave no room in the {} that this model was trained on "
        "(data.sequence-length): shorten the prompt "
        "to at most {}",
        tokens.size(), capacity, capacity - 1);
  if (count > room)
    fail_usage(
        "{} prompt tokens and --tokens={} exceed the {} tokens this model was trained on "
        "(data.sequence-length): ask for at "
        "most {}",
        tokens.size(), count, capacity, room);

  model::Decoder decoder(*loaded.transformer, loaded.config.attention,
                         static_cast<std::int64_t>(tokens.size()) + count);
  std::vector<float> logits = decoder.append(tokens);
  // What is new in the text of all tokens so far: ids are separated, letters are not.
  std::size_t printed = loaded.tokenizer.decode(tokens).size();
  std::cout << loaded.tokenizer.decode(tokens) << std::flush;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t token = model::sample_token(logits, loaded.tokenizer.vocabulary(), sampling,
                                                   static_cast<std::uint64_t>(i));
    tokens.push_back(token);
    const std::string text = loaded.tokenizer.decode(tokens);
    std::cout << text.substr(std::exchange(printed, text.size())) << std::flush;
    if (i + 1 < count) logits = decoder.append({token});
  }
  std::cout << '\n';
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
