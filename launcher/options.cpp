#include "launcher/options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include "launcher/ini.hpp"
#include "launcher/option_value.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

namespace po = boost::program_options;

struct Option {
  OptionDescription description;
  /// Sets the field; returns what would have been valid, empty if the text was.
  std::function<std::string(const std::string&)> set;
};

/// All options, bound to the fields of one RunConfig, which must outlive it.
class Registry {
 public:
  explicit Registry(RunConfig& c) {
    section("run", c.run);
    section("model", c.model);
    section("data", c.data);
    section("mesh", c.mesh);
    section("attention", c.attention);
    section("memory", c.memory);
    section("train", c.train);
    section("optimizer", c.optimizer);
    section("checkpoint", c.checkpoint);
    section("log", c.log);
    section("slurm", c.slurm);
  }

  const std::vector<Option>& options() const { return options_; }
  const Option* find(const std::string& name) const {
    const auto at = std::find_if(options_.begin(), options_.end(),
                                 [&](const Option& o) { return o.description.name == name; });
    return at == options_.end() ? nullptr : &*at;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const Option& o : options_) all.push_back(o.description.name);
    return all;
  }
  po::options_description for_boost() const {
    po::options_description all;
    for (const Option& o : options_)
      all.add_options()(o.description.name.c_str(), po::value<std::string>(),
                        o.description.help.c_str());
    return all;
  }

 private:
  void section(const char* name, RunSettings& r) {
    section_ = name;
    bind("name", r.name, "", "name of the run; without run.directory its folder is runs/<name>");
    bind("directory", r.directory, "path", "where the run writes; empty = runs/<run.name>");
    bind("seed", r.seed, "", "of initial weights, data order and dropout");
    bind("device", r.device, "", "auto, cpu or cuda; auto falls back to the CPU and says so");
    bind("communication", r.communication, "",
         "between GPUs: nccl; staged (through the host's memory and MPI: without NCCL, and as a "
         "check; the bits of MPI); auto = nccl where every rank finds it");
    bind("share-gpu", r.share_gpu, "", "several ranks may compute on one GPU, in turns: for tests");
    bind("deterministic", r.deterministic, "",
         "on = the same bits in every run on a GPU too (own attention kernels, matrix products "
         "never chosen by the clock); the CPU always is");
    bind("threads", r.threads, "threads", "per rank; 0 = cores of the node / ranks on it");
    bind("hang-timeout", r.hang_timeout, "seconds",
         "after which a rank that keeps the others waiting is named and the job ends; auto or 0 = "
         "10 x the median step, at least 60 s; off. Start, validation and saves may take longer as "
         "long as the ranks are alive");
  }
  void section(const char* name, model::ModelConfig& m) {
    section_ = name;
    bind("layers", m.layers, "blocks", "transformer blocks");
    bind("width", m.width, "channels", "of the residual stream");
    bind("heads", m.heads, "heads", "query heads");
    bind("kv-heads", m.kv_heads, "heads",
         "key/value heads, a divisor of model.heads; 0 = model.heads");
    bind("head-size", m.head_size, "channels",
         "of one head, a multiple of 4, at most 256; 0 = model.width / model.heads");
    bind("mlp", m.mlp, "", "activation of the MLP");
    bind("mlp-width", m.mlp_width, "channels",
         "0 = 4 * model.width (gelu), or 8/3 * model.width rounded up to 64 (swiglu)");
    bind("norm", m.norm, "", "normalisation before attention and MLP");
    bind("norm-epsilon", m.norm_epsilon, "", "added to the variance or mean square");
    bind("position", m.position, "", "how tokens know where they are");
    bind("rope-theta", m.rope_theta, "",
         "base of the rotary wavelengths; larger for longer sequences");
    bind("max-positions", m.max_positions, "tokens",
         "rows of the learned position table; 0 = data.sequence-length");
    bind("bias", m.bias, "", "biases in the linear layers");
    bind("tie-embeddings", m.tie_embeddings, "", "the output projection is the token embedding");
    bind("dropout", m.dropout, "probability", "after embedding, attention and MLP, in [0, 1)");
    bind("vocabulary", m.vocabulary, "tokens", "0 = the dataset's, rounded up to a multiple of 64");
    bind("precision", m.precision, "",
         "operands of matrix products; sums, weights and optimizer stay fp32");
  }
  void section(const char* name, io::DataConfig& d) {
    section_ = name;
    bind("path", d.path, "path", "dataset made by longspan prepare");
    bind("sequence-length", d.sequence_length, "tokens",
         "of one sequence, over all ranks that share it");
    bind("pack", d.pack, "",
         "documents: neither attention nor a target crosses a border between documents");
  }
  void section(const char* name, MeshConfig& m) {
    section_ = name;
    bind("data", m.data, "ranks", "that share the batch; 0 = whatever the other axes leave");
    bind("context", m.context, "ranks",
         "that share one sequence; 0 = whatever the other axes leave");
    bind("tensor", m.tensor, "ranks",
         "that share the weights of every layer, and the tokens between them; 0 = whatever the "
         "other "
         "axes leave");
    bind("elastic", m.elastic, "",
         "on: with fewer or more ranks than that the run goes on with the next fitting mesh, the "
         "same global batch and the same data order; needs train.global-batch");
  }
  void section(const char* name, model::AttentionConfig& a) {
    section_ = name;
    bind("mask", a.mask, "", "causal: a token sees itself and what stands before it");
    bind("window", a.window, "tokens", "that a query sees, itself included; 0 = all");
    bind(
        "scheme", a.scheme, "",
        "how mesh.context ranks share a sequence. ring: keys and values travel behind the compute; "
        "allgather: every rank gathers all of them; ulysses: a rank attends with its share of the "
        "heads over the whole sequence; hybrid: ulysses among neighbours of a node, ring across. "
        "auto = the one that by formula hides its communication best, ring where that is nearly "
        "the "
        "same; one context rank needs none");
  }
  void section(const char* name, model::MemoryConfig& m) {
    section_ = name;
    bind("keep", m.keep, "",
         "what the backward pass finds: all activations but the norms' and the MLP's after its "
         "nonlinearity, "
         "which one pass over memory each brings back; each block's input and attention output "
         "(the rest is recomputed, "
         "attention is not); or each block's input alone; auto: the cheapest mix of these over the "
         "layers that fits memory.budget, worked out before the run starts and printed");
    bind("loss-chunk", m.loss_chunk, "tokens", "whose logits exist at a time; 0 = work it out");
    bind("mlp-chunk", m.mlp_chunk, "tokens",
         "in the MLP of a layer at a time: what exists between its products does not grow with the "
         "sequence (with keep=all what stands before the nonlinearity is kept); 0 = work it out");
    bind(
        "budget", m.budget, "bytes",
        "one rank may use, such as 512m or 3g; 0 = with memory.keep=auto 80 % of the node's memory "
        "(or of its control group's limit) / the ranks on it, otherwise no limit");
    bind("offload", m.offload, "",
         "block inputs, and with memory.keep=attention attention outputs too, wait elsewhere "
         "between "
         "forward and backward, moved behind the compute. file: in a file; host: a GPU's in the "
         "host's page-locked memory (on the CPU they are in the host's memory already)");
    bind("offload-directory", m.offload_directory, "path",
         "where each rank makes its file, which has no name and goes with the process: a fast disk "
         "of the node itself, not /tmp where that is memory; empty = the run directory");
  }
  void section(const char* name, TrainConfig& t) {
    section_ = name;
    bind("steps", t.steps, "steps", "optimizer steps of the whole run");
    bind("stop-after", t.stop_after, "steps",
         "of this start: then save and leave with status 75; 0 = off");
    bind("time-limit", t.time_limit, "duration",
         "of this start, such as 45m or 1:30:00: save and leave with status 75 while there is time "
         "for one more step and the save; 0 = none");
    bind("global-batch", t.global_batch, "sequences",
         "per optimizer step; 0 = train.micro-batch * data ranks");
    bind("micro-batch", t.micro_batch, "sequences", "per forward pass on one data rank");
    bind("validate-every", t.validate_every, "steps", "between validations; 0 = off");
    bind("validate-sequences", t.validate_sequences, "sequences",
         "of the validation split, the same ones each time");
    bind("patience", t.patience, "validations",
         "without a better loss before the run ends early; 0 = off");
  }
  void section(const char* name, model::OptimizerConfig& o) {
    section_ = name;
    bind("learning-rate", o.learning_rate, "", "highest value, reached after the warm-up");
    bind("minimum-learning-rate", o.minimum_learning_rate, "", "where cosine and linear end");
    bind("schedule", o.schedule, "", "of the learning rate after the warm-up");
    bind("warmup-steps", o.warmup_steps, "steps", "of linear growth from 0");
    bind("weight-decay", o.weight_decay, "",
         "decoupled (AdamW); matrices only, not norms and biases");
    bind("clip", o.clip, "", "bound of the global gradient norm; 0 = off");
    bind("beta1", o.beta1, "", "decay of the first moment");
    bind("beta2", o.beta2, "", "decay of the second moment");
    bind("epsilon", o.epsilon, "", "added to the root of the second moment");
    bind("shard", o.shard, "",
         "what the mesh.data * mesh.context ranks share instead of each having all of it. states: "
         "AdamW's moments; gradients: those and the gradients; parameters: all of it and the "
         "weights, which are gathered a block at a time, forward and backward (ZeRO 1, 2, 3)");
  }
  void section(const char* name, io::CheckpointConfig& c) {
    section_ = name;
    bind("every", c.every, "steps", "between checkpoints; 0 = only at the end");
    bind("keep", c.keep, "checkpoints", "the newest ones stay; 0 = all");
    bind("resume", c.resume, "",
         "auto: from the newest checkpoint of the run directory; never; or the path of a "
         "checkpoint, where a run directory without any begins");
    bind("overlap", c.overlap, "",
         "on: training goes on while a copy of this rank's share of weights and optimizer states "
         "is written; off: it waits, and needs no memory for the copy");
  }
  void section(const char* name, LogConfig& l) {
    section_ = name;
    bind("every", l.every, "steps", "between lines on the terminal; metrics.jsonl has every step");
    bind("profile", l.profile, "",
         "at the end a table of the operations of a step: time, FLOPs, share of the peak; also "
         "profile.json");
    bind("tensorboard", l.tensorboard, "",
         "the metrics also as TensorBoard event files, in tensorboard/ of the run directory");
    bind("trace", l.trace, "path",
         "one step of all ranks (the first 16) as a picture, for https://ui.perfetto.dev: "
         "operations, communication, data, checkpoints; empty = none");
    bind("trace-step", l.trace_step, "step",
         "which one, counted from 1 at this start; the first ones warm everything up");
  }
  void section(const char* name, slurm::SlurmConfig& s) {
    section_ = name;
    bind("nodes", s.nodes, "nodes", "of the job; 0 = ranks of the mesh / slurm.ranks-per-node");
    bind("ranks-per-node", s.ranks_per_node, "ranks",
         "0 = ranks of the mesh / slurm.nodes, which is 1 if it is 0 as well");
    bind("cpus-per-rank", s.cpus_per_rank, "cpus", "0 = run.threads, or what the site gives");
    bind("gpus-per-rank", s.gpus_per_rank, "gpus", "asked of every node for its ranks");
    bind("binding", s.binding, "",
         "cores: a rank and its threads stay on cores of their own (under mpirun where "
         "slurm.cpus-per-rank says how many)");
    bind("memory", s.memory, "", "of a node, such as 64G; empty = what the site gives");
    bind("time", s.time, "",
         "limit of one job, such as 12:00:00, 1-12:00:00 or minutes; empty = the partition's");
    bind("partition", s.partition, "", "empty = the site's default");
    bind("account", s.account, "", "that pays; empty = yours by default");
    bind("qos", s.qos, "", "quality of service; empty = the site's default");
    bind("constraint", s.constraint, "", "features that the nodes must have");
    bind("reservation", s.reservation, "", "nodes set aside for you");
    bind("array", s.array, "",
         "such as 1-8%2: one run for each number, which is its run.seed, in <run directory>/"
         "<number>");
    bind("dependency", s.dependency, "", "when the job may begin, such as afterok:123");
    bind("extra", s.extra, "",
         "further options of sbatch as they are, such as --exclusive --mail-type=END");
    bind("modules", s.modules, "", "loaded in the job, separated by spaces");
    bind("environment", s.environment, "",
         "NAME=VALUE set in the job, separated by spaces; a value with spaces stands in quotes");
    bind("starter", s.starter, "",
         "of the ranks; auto: srun where Slurm speaks PMIx, which the job finds out, else mpirun");
    bind("continue", s.continuation, "",
         "when a job ends before the run is done. requeue: the same job begins again; chain: a new "
         "job that waits for its end, for sites without requeue; none: it is left to you");
    bind("max-restarts", s.max_restarts, "restarts", "of a run after it was submitted");
    bind("signal-margin", s.signal_margin, "seconds",
         "added to one step and one save: so long before its limit the job is warned");
  }

  template <class T>
  void bind(const char* key, T& field, const char* unit, const char* help) {
    OptionDescription d;
    d.name = section_ + "." + key;
    d.unit = unit;
    d.help = help;
    d.values = option_value::kind<T>();
    d.value = option_value::print(field);
    options_.push_back(
        {d, [&field](const std::string& text) { return option_value::parse(text, field); }});
  }

  std::vector<Option> options_;
  std::string section_;
};

/// Reads values from several sources; what is wrong with them is collected, not thrown.
class Reader {
 public:
  Reader() : registry_(config_), boost_options_(registry_.for_boost()) {}

  void read_command_line(const std::vector<std::string>& arguments) {
    using namespace po::command_line_style;
    std::vector<po::option> options;
    std::vector<std::string> words;  // Boost refuses "--name=" with nothing behind it
    for (const std::string& a : arguments) {
      words.push_back(a);
      const std::size_t equals = a.find('=');
      if (a.rfind("--", 0) != 0 || equals == std::string::npos) continue;
      words.back() = a.substr(0, equals);
      words.push_back(a.substr(equals + 1));
    }
    try {
      // No short options: "-1" is a value. No guessing: --model.layer must not silently mean
      // --model.layers.
      options = po::command_line_parser(words)
                    .options(boost_options_)
                    .style(allow_long | long_allow_next)
                    .allow_unregistered()
                    .run()
                    .options;
    } catch (const po::error& e) {
      problems_.push_back(fmt::format("command line: {}", e.what()));
      return;
    }
    std::vector<IniEntry> entries;
    for (std::size_t i = 0; i < options.size(); ++i) {
      const po::option& o = options[i];
      const std::string value = o.value.empty() ? "" : o.value[0];
      if (o.position_key >= 0) {
        problems_.push_back(
            fmt::format("command line: '{}' stands alone: write --section.key VALUE", value));
        continue;
      }
      // Boost does not know that an unknown option has a value: the word behind it is its.
      if (o.unregistered && i + 1 < options.size() && options[i + 1].position_key >= 0) ++i;
      std::erase_if(entries, [&](const IniEntry& earlier) { return earlier.name == o.string_key; });
      entries.push_back({o.string_key, value, 0});
    }
    store(entries, "command line");
  }

  void read_file(const std::string& path) {
    if (std::filesystem::is_directory(path)) {
      problems_.push_back(fmt::format("cannot read the configuration {}: it is a folder", path));
      return;
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      problems_.push_back(
          fmt::format("cannot read the configuration {}: {}", path, std::strerror(errno)));
      return;
    }
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    read_ini(text, path);
  }

  void read_ini(const std::string& text, const std::string& source) {
    std::vector<IniEntry> entries = parse_ini_lines(text, source, problems_);
    std::map<std::string, int> first_line;
    std::erase_if(entries, [&](const IniEntry& e) {
      const auto [at, is_new] = first_line.try_emplace(e.name, e.line);
      if (!is_new)
        problems_.push_back(fmt::format("{}:{}: {} was already set in line {}", source, e.line,
                                        e.name, at->second));
      return !is_new;
    });
    store(entries, source);
  }

  /// Throws Error (usage) with all problems, one a line.
  RunConfig finish() {
    std::set<std::string> unread;
    for (const Option& o : registry_.options()) {
      const std::string& name = o.description.name;
      if (values_.count(name) == 0) continue;
      const std::string text = values_[name].as<std::string>();
      const std::string valid = o.set(text);
      if (valid.empty()) continue;
      problems_.push_back(
          fmt::format("{}: {}={}: it must be {}", sources_[name], name, text, valid));
      unread.insert(name);
    }
    // A combination with a value that could not be read is nothing to complain about.
    for (const std::string& problem : problems_of(config_))
      if (std::none_of(unread.begin(), unread.end(), [&](const std::string& n) {
            return problem.find(n + "=") != std::string::npos;
          }))
        problems_.push_back(problem);
    if (!problems_.empty())
      throw Error(fmt::format("{}", fmt::join(problems_, "\n")), ExitStatus::kUsage);
    return config_;
  }

 private:
  /// Of two sources the first that sets an option wins, as in po::store.
  void store(const std::vector<IniEntry>& entries, const std::string& source) {
    po::parsed_options parsed(&boost_options_);
    for (const IniEntry& e : entries) {
      const std::string where = e.line == 0 ? source : fmt::format("{}:{}", source, e.line);
      if (registry_.find(e.name) == nullptr) {
        const std::string near = nearest(e.name, registry_.names());
        problems_.push_back(fmt::format(
            "{}: there is no setting '{}'{}", where, e.name,
            near.empty() ? ": longspan config lists all" : ": did you mean " + near + "?"));
        continue;
      }
      sources_.try_emplace(e.name, where);
      parsed.options.emplace_back(e.name, std::vector<std::string>{e.value});
    }
    po::store(parsed, values_);
  }

  RunConfig config_;
  Registry registry_;
  po::options_description boost_options_;
  po::variables_map values_;
  std::map<std::string, std::string> sources_;
  std::vector<std::string> problems_;
};

}  // namespace

RunConfig parse_config(const std::string& file, const std::vector<std::string>& arguments) {
  Reader reader;
  reader.read_command_line(arguments);
  if (!file.empty()) reader.read_file(file);
  return reader.finish();
}

RunConfig parse_ini(const std::string& text) {
  Reader reader;
  reader.read_ini(text, "configuration");
  return reader.finish();
}

std::string to_ini(const RunConfig& config) {
  std::string text, section;
  for (const OptionDescription& o : describe_options(config)) {
    const std::size_t dot = o.name.find('.');
    if (o.name.substr(0, dot) != section) {
      section = o.name.substr(0, dot);
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", section);
    }
    const std::string value = ini_value(o.value);
    text += fmt::format("{} ={}{}\n", o.name.substr(dot + 1), value.empty() ? "" : " ", value);
  }
  return text;
}

std::vector<OptionDescription> describe_options(const RunConfig& config) {
  RunConfig defaults, described = config;
  const Registry of_defaults(defaults), of_config(described);
  std::vector<OptionDescription> all;
  for (std::size_t i = 0; i < of_config.options().size(); ++i) {
    all.push_back(of_config.options()[i].description);
    all.back().default_value = of_defaults.options()[i].description.value;
  }
  return all;
}

}  // namespace longspan::launcher
