#include "launcher/options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <type_traits>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

namespace po = boost::program_options;
using namespace model;

template <class E>
using EnumNames = std::vector<std::pair<E, const char*>>;

const EnumNames<MlpKind>& names(MlpKind) {
  static const EnumNames<MlpKind> all = {{MlpKind::kGelu, "gelu"}, {MlpKind::kSwiglu, "swiglu"}};
  return all;
}
const EnumNames<NormKind>& names(NormKind) {
  static const EnumNames<NormKind> all = {{NormKind::kLayerNorm, "layernorm"}, {NormKind::kRmsNorm, "rmsnorm"}};
  return all;
}
const EnumNames<PositionKind>& names(PositionKind) {
  static const EnumNames<PositionKind> all = {{PositionKind::kRope, "rope"},
                                              {PositionKind::kLearned, "learned"},
                                              {PositionKind::kSinusoidal, "sinusoidal"},
                                              {PositionKind::kNone, "none"}};
  return all;
}
const EnumNames<Precision>& names(Precision) {
  static const EnumNames<Precision> all = {{Precision::kFp32, "fp32"}, {Precision::kBf16, "bf16"}};
  return all;
}
const EnumNames<MaskKind>& names(MaskKind) {
  static const EnumNames<MaskKind> all = {{MaskKind::kCausal, "causal"}, {MaskKind::kFull, "full"}};
  return all;
}
const EnumNames<Keep>& names(Keep) {
  static const EnumNames<Keep> all = {{Keep::kAll, "all"}, {Keep::kAttention, "attention"}, {Keep::kBlock, "block"}};
  return all;
}
const EnumNames<ScheduleKind>& names(ScheduleKind) {
  static const EnumNames<ScheduleKind> all = {
      {ScheduleKind::kCosine, "cosine"}, {ScheduleKind::kLinear, "linear"}, {ScheduleKind::kConstant, "constant"}};
  return all;
}
const EnumNames<io::Pack>& names(io::Pack) {
  static const EnumNames<io::Pack> all = {{io::Pack::kNone, "none"}, {io::Pack::kDocuments, "documents"}};
  return all;
}
const EnumNames<bool>& names(bool) {
  static const EnumNames<bool> all = {{true, "on"}, {false, "off"}};
  return all;
}

/// Writes `text` into `field`; returns what would have been valid, empty if it was.
template <class T>
std::string parse_value(const std::string& text, T& field) {
  if constexpr (std::is_same_v<T, std::string>) {
    field = text;
    return "";
  } else if constexpr (std::is_enum_v<T> || std::is_same_v<T, bool>) {
    std::string valid;
    for (const auto& [value, name] : names(T{})) {
      if (text == name) return field = value, "";
      valid += (valid.empty() ? "" : " or ") + std::string(name);
    }
    if constexpr (std::is_same_v<T, bool>) {
      if (text == "true" || text == "yes" || text == "1") return field = true, "";
      if (text == "false" || text == "no" || text == "0") return field = false, "";
    }
    return valid;
  } else if constexpr (std::is_integral_v<T>) {
    T value{};
    const char* const end = text.data() + text.size();
    auto [rest, error] = std::from_chars(text.data(), end, value);
    const char suffix = rest + 1 == end ? static_cast<char>(std::tolower(*rest)) : '\0';
    const int shift = suffix == 'k' ? 10 : suffix == 'm' ? 20 : suffix == 'g' ? 30 : 0;
    if (error != std::errc() || (rest != end && shift == 0)) return "a whole number such as 12, 8k (8 * 1024) or 1m (1024^2)";
    T scaled{};
    if (__builtin_mul_overflow(value, T{1} << shift, &scaled)) return "a number that fits into 64 bits";
    return field = scaled, "";
  } else {
    T value{};
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || rest != text.data() + text.size()) return "a number such as 0.1 or 3e-4";
    return field = value, "";
  }
}

template <class T>
std::string print_value(const T& field) {
  if constexpr (std::is_enum_v<T> || std::is_same_v<T, bool>) {
    for (const auto& [value, name] : names(T{}))
      if (field == value) return name;
    return "";
  } else {
    return fmt::format("{}", field);  // floats: the shortest text that reads back to the same bits
  }
}

/// One setting: its description and its field in a RunConfig.
struct Option {
  OptionDescription description;
  std::function<std::string(const std::string&)> parse;
  std::function<std::string()> print;
};

class Registry {
 public:
  explicit Registry(RunConfig& c) {
    bind("run.name", c.run.name, "", "name of the run; its folder is runs/<name>");
    bind("run.directory", c.run.directory, "path", "where the run writes; empty = runs/<run.name>");
    bind("run.seed", c.run.seed, "", "of initial weights, data order and dropout");
    bind("run.device", c.run.device, "", "auto, cpu or cuda; auto takes a GPU if the plug-in finds one");
    bind("run.threads", c.run.threads, "threads", "per rank; 0 = cores of the node / ranks on it");
    bind("model.layers", c.model.layers, "", "transformer blocks");
    bind("model.width", c.model.width, "", "channels of the residual stream");
    bind("model.heads", c.model.heads, "", "query heads");
    bind("model.kv-heads", c.model.kv_heads, "", "key/value heads, a divisor of model.heads; 0 = model.heads");
    bind("model.head-size", c.model.head_size, "", "channels of a head; 0 = model.width / model.heads");
    bind("model.mlp", c.model.mlp, "", "gelu or swiglu");
    bind("model.mlp-width", c.model.mlp_width, "", "0 = 4 * model.width (gelu), 8/3 * model.width rounded up to 64 (swiglu)");
    bind("model.norm", c.model.norm, "", "layernorm or rmsnorm");
    bind("model.norm-epsilon", c.model.norm_epsilon, "", "added to the variance");
    bind("model.position", c.model.position, "", "rope, learned, sinusoidal or none");
    bind("model.rope-theta", c.model.rope_theta, "", "base of the rotary frequencies; larger for longer sequences");
    bind("model.max-positions", c.model.max_positions, "tokens", "rows of the learned table; 0 = data.sequence-length");
    bind("model.bias", c.model.bias, "", "biases in the linear layers: on or off");
    bind("model.tie-embeddings", c.model.tie_embeddings, "", "the output matrix is the token table: on or off");
    bind("model.dropout", c.model.dropout, "", "probability, in [0, 1), after embedding, attention and MLP");
    bind("model.vocabulary", c.model.vocabulary, "tokens", "0 = the dataset's, rounded up to a multiple of 64");
    bind("model.precision", c.model.precision, "", "fp32, or bf16: operands of matrix products are rounded, sums stay fp32");
    bind("data.path", c.data.path, "path", "dataset made by longspan prepare");
    bind("data.sequence-length", c.data.sequence_length, "tokens", "of one sequence, over all ranks that share it");
    bind("data.pack", c.data.pack, "", "none, or documents: no attention and no target across document borders");
    bind("mesh.data", c.mesh.data, "ranks", "that share the batch; 0 = what mesh.context leaves");
    bind("mesh.context", c.mesh.context, "ranks", "that share one sequence; 0 = what mesh.data leaves");
    bind("attention.mask", c.attention.mask, "", "causal or full");
    bind("attention.window", c.attention.window, "tokens", "a query sees, itself included; 0 = all");
    bind("memory.keep", c.memory.keep, "", "for the backward pass: all; attention (block input, attention output); block (block input)");
    bind("memory.loss-chunk", c.memory.loss_chunk, "tokens", "whose logits exist at a time; 0 = worked out");
    bind("train.steps", c.train.steps, "steps", "length of the run");
    bind("train.stop-after", c.train.stop_after, "steps", "of this start; then save and exit 75; 0 = off");
    bind("train.global-batch", c.train.global_batch, "sequences", "per optimizer step; 0 = micro-batch * mesh.data");
    bind("train.micro-batch", c.train.micro_batch, "sequences", "per forward pass of one data rank");
    bind("train.validate-every", c.train.validate_every, "steps", "0 = off");
    bind("train.validate-sequences", c.train.validate_sequences, "sequences", "of the validation split, the same every time");
    bind("train.patience", c.train.patience, "validations", "without a better loss before the run ends early; 0 = off");
    bind("optimizer.learning-rate", c.optimizer.learning_rate, "", "after the warm-up");
    bind("optimizer.minimum-learning-rate", c.optimizer.minimum_learning_rate, "", "at the end of cosine and linear");
    bind("optimizer.schedule", c.optimizer.schedule, "", "cosine, linear or constant, after the warm-up");
    bind("optimizer.warmup-steps", c.optimizer.warmup_steps, "steps", "of linear warm-up");
    bind("optimizer.weight-decay", c.optimizer.weight_decay, "", "decoupled; matrices only, not norms and biases");
    bind("optimizer.clip", c.optimizer.clip, "", "bound of the global gradient norm; 0 = off");
    bind("optimizer.beta1", c.optimizer.beta1, "", "decay of the first moment");
    bind("optimizer.beta2", c.optimizer.beta2, "", "decay of the second moment");
    bind("optimizer.epsilon", c.optimizer.epsilon, "", "added to the root of the second moment");
    bind("checkpoint.every", c.checkpoint.every, "steps", "0 = only at the end of the run");
    bind("checkpoint.keep", c.checkpoint.keep, "checkpoints", "the newest ones; 0 = all");
    bind("checkpoint.resume", c.checkpoint.resume, "", "auto (the newest of the run), never, or the path of a checkpoint");
    bind("log.every", c.log.every, "steps", "between lines on the terminal; metrics.jsonl has every step");
  }

  const std::vector<Option>& options() const { return options_; }
  Option* find(const std::string& name) {
    const auto at = std::find_if(options_.begin(), options_.end(), [&](const Option& o) { return o.description.name == name; });
    return at == options_.end() ? nullptr : &*at;
  }
  std::vector<std::string> option_names() const {
    std::vector<std::string> all;
    for (const Option& o : options_) all.push_back(o.description.name);
    return all;
  }
  po::options_description for_parser() const {
    po::options_description all;
    for (const Option& o : options_) all.add_options()(o.description.name.c_str(), po::value<std::string>(), "");
    return all;
  }

 private:
  template <class T>
  void bind(const char* name, T& field, const char* unit, const char* help) {
    options_.push_back({{name, unit, print_value(field), help},
                        [&field](const std::string& text) { return parse_value(text, field); },
                        [&field] { return print_value(field); }});
  }
  std::vector<Option> options_;
};

/// Takes the parsed options of one source into the registry. What an earlier source has set stays.
void take(const po::parsed_options& parsed, const std::string& source, Registry& registry, std::set<std::string>& set,
          bool last_wins, std::vector<std::string>& problems) {
  std::map<std::string, std::string> found;
  for (const auto& option : parsed.options) {
    if (option.position_key >= 0) {
      problems.push_back(fmt::format("{}: '{}' is not a setting: write --section.key VALUE", source,
                                     option.value.empty() ? "" : option.value[0]));
      continue;
    }
    const std::string& name = option.string_key;
    if (registry.find(name) == nullptr) {
      const std::string near = nearest(name, registry.option_names());
      problems.push_back(fmt::format("{}: there is no setting '{}'{}", source, name,
                                     near.empty() ? ": longspan config lists them all" : ": did you mean " + near + "?"));
    } else if (!last_wins && found.count(name) != 0) {
      problems.push_back(fmt::format("{}: {} is set twice, to {} and {}", source, name, found[name], option.value[0]));
    } else {
      found[name] = option.value.empty() ? "" : option.value[0];
    }
  }
  for (const auto& [name, value] : found) {
    if (!set.insert(name).second) continue;
    if (const std::string valid = registry.find(name)->parse(value); !valid.empty())
      problems.push_back(fmt::format("{}: {} = {}: it must be {}", source, name, value, valid));
  }
}

void take_ini(std::istream& text, const std::string& source, Registry& registry, std::set<std::string>& set,
              std::vector<std::string>& problems) {
  try {
    take(po::parse_config_file(text, registry.for_parser(), true), source, registry, set, false, problems);
  } catch (const po::error& e) {
    problems.push_back(fmt::format("{}: {}", source, e.what()));
  }
}

[[noreturn]] void fail_with(const std::vector<std::string>& problems) {
  std::string message;
  for (const std::string& p : problems) message += (message.empty() ? "" : "\n") + p;
  throw Error(message, ExitStatus::kUsage);
}

}  // namespace

RunConfig parse_config(const std::string& file, const std::vector<std::string>& arguments) {
  RunConfig config;
  Registry registry(config);
  std::set<std::string> set;
  std::vector<std::string> problems;
  try {
    po::command_line_parser parser(arguments);
    const po::options_description known = registry.for_parser();
    // No guessing: --model.layer must not silently mean --model.layers.
    parser.options(known).style(po::command_line_style::unix_style & ~po::command_line_style::allow_guessing).allow_unregistered();
    take(parser.run(), "command line", registry, set, true, problems);
  } catch (const po::error& e) {
    problems.push_back(fmt::format("command line: {}", e.what()));
  }
  if (!file.empty()) {
    std::ifstream text(file);
    if (text)
      take_ini(text, file, registry, set, problems);
    else
      problems.push_back(fmt::format("{}: cannot read this configuration: is the path right?", file));
  }
  if (problems.empty()) problems = problems_of(config);
  if (!problems.empty()) fail_with(problems);
  return config;
}

RunConfig parse_ini(const std::string& text) {
  RunConfig config;
  Registry registry(config);
  std::set<std::string> set;
  std::vector<std::string> problems;
  std::istringstream stream(text);
  take_ini(stream, "configuration of the checkpoint", registry, set, problems);
  if (!problems.empty()) fail_with(problems);
  return config;
}

std::string to_ini(const RunConfig& config) {
  RunConfig copy = config;
  const Registry registry(copy);
  std::string text, section;
  for (const Option& o : registry.options()) {
    const std::string& name = o.description.name;
    const std::size_t dot = name.find('.');
    if (name.substr(0, dot) != section) {
      section = name.substr(0, dot);
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", section);
    }
    text += fmt::format("{} = {}\n", name.substr(dot + 1), o.print());
  }
  return text;
}

std::vector<OptionDescription> describe_options() {
  RunConfig defaults;
  const Registry registry(defaults);
  std::vector<OptionDescription> all;
  for (const Option& o : registry.options()) all.push_back(o.description);
  return all;
}

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = word.size() / 2 + 2;  // further away is another word, not a misspelling
  for (const std::string& candidate : candidates) {
    // Levenshtein distance, one row at a time.
    std::vector<std::size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= word.size(); ++i) {
      std::size_t diagonal = std::exchange(row[0], i);
      for (std::size_t j = 1; j <= candidate.size(); ++j) {
        const std::size_t substitution = diagonal + (word[i - 1] != candidate[j - 1]);
        diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, substitution}));
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace longspan::launcher
