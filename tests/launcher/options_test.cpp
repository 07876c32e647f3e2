/// The registry: every field has its option and comes back from text; what is wrong is said at
/// once, with its place.
#include "launcher/options.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using testing_support::TemporaryDirectory;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// The problems parse_config finds; empty if none.
std::vector<std::string> problems(const std::string& file,
                                  const std::vector<std::string>& arguments) {
  try {
    parse_config(file, arguments);
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    return lines_of(e.what());
  }
  return {};
}

class Options : public testing::Test {
 protected:
  std::string file(const std::string& text) {
    const std::string path = directory_.file("run.ini");
    std::ofstream(path) << text;
    return path;
  }
  TemporaryDirectory directory_;
};

/// No field has its default.
RunConfig unusual() {
  RunConfig c;
  c.run = {"a b", "runs #3; \"x\\y\" ", 18446744073709551615u, "cpu", "staged", true, true, 3};
  c.model.layers = 2, c.model.width = 96, c.model.heads = 6, c.model.kv_heads = 2,
  c.model.head_size = 20;
  c.model.mlp = model::MlpKind::kGelu, c.model.mlp_width = 100;
  c.model.norm = model::NormKind::kLayerNorm, c.model.norm_epsilon = 1.1e-6f;
  c.model.position = model::PositionKind::kSinusoidal, c.model.rope_theta = 1.0 / 3.0 * 1e9;
  c.model.max_positions = 5000, c.model.bias = true, c.model.tie_embeddings = false,
  c.run.hang_timeout = "90";
  c.model.dropout = 0.1f;
  c.model.vocabulary = 320, c.model.precision = model::Precision::kBf16;
  c.data = {" /data/with space.h5", 4097, io::Pack::kDocuments};
  c.mesh = {2, 4, 2, true};
  c.attention = {model::MaskKind::kFull, 77, model::AttentionSchemeKind::kUlysses};
  c.memory = {model::Keep::kAuto, 33, 44, 3 << 20, model::Offload::kFile, "/local disk"};
  c.train = {7, 2, 24, 3, 5, 9, 4, {5400}};
  c.optimizer = {1.0 / 3.0, 1e-300, model::ScheduleKind::kLinear,     11, 0.0, 0.7, 0.1,
                 0.2,       3e-9,   model::OptimizerShard::kGradients};
  c.checkpoint = {6, 0, "never", false};
  c.log = {10, true, true, "a step.json", 5};
  c.slurm = {3,
             4,
             5,
             6,
             slurm::Binding::kNone,
             "64G",
             "1-12:00:00",
             "gpu",
             "climate",
             "long",
             "ib&a100",
             "spring school",
             "1-8%2",
             "afterok:12",
             "--exclusive\n--mail-type=END",
             "gcc/12 openmpi",
             "A=1 B='two words'",
             slurm::Starter::kMpirun,
             slurm::Continue::kChain,
             7,
             30};
  return c;
}

std::map<std::string, std::string> values_of(const RunConfig& c) {
  std::map<std::string, std::string> all;
  for (const auto& o : describe_options(c)) all[o.name] = o.value;
  return all;
}

TEST_F(Options, TheNamesAreTheOnesThatScriptsUse) {
  std::string names;
  for (const auto& o : describe_options()) names += o.name + " ";
  EXPECT_EQ(names,
            "run.name run.directory run.seed run.device run.communication run.share-gpu "
            "run.deterministic "
            "run.threads run.hang-timeout model.layers "
            "model.width "
            "model.heads model.kv-heads "
            "model.head-size model.mlp model.mlp-width model.norm model.norm-epsilon "
            "model.position model.rope-theta "
            "model.max-positions model.bias model.tie-embeddings model.dropout model.vocabulary "
            "model.precision data.path "
            "data.sequence-length data.pack mesh.data mesh.context mesh.tensor mesh.elastic "
            "attention.mask "
            "attention.window "
            "attention.scheme memory.keep "
            "memory.loss-chunk memory.mlp-chunk memory.budget memory.offload "
            "memory.offload-directory train.steps "
            "train.stop-after train.time-limit train.global-batch train.micro-batch "
            "train.validate-every "
            "train.validate-sequences train.patience optimizer.learning-rate "
            "optimizer.minimum-learning-rate "
            "optimizer.schedule optimizer.warmup-steps optimizer.weight-decay optimizer.clip "
            "optimizer.beta1 optimizer.beta2 "
            "optimizer.epsilon optimizer.shard checkpoint.every checkpoint.keep checkpoint.resume "
            "checkpoint.overlap "
            "log.every log.profile log.tensorboard log.trace log.trace-step slurm.nodes "
            "slurm.ranks-per-node slurm.cpus-per-rank "
            "slurm.gpus-per-rank "
            "slurm.binding slurm.memory slurm.time slurm.partition slurm.account slurm.qos "
            "slurm.constraint slurm.reservation slurm.array slurm.dependency slurm.extra "
            "slurm.modules slurm.environment slurm.starter slurm.continue slurm.max-restarts "
            "slurm.signal-margin ");
}

TEST_F(Options, EveryFieldHasAnOptionOfItsOwn) {
  // If a field had none, or two options shared one, a changed value would still print as its
  // default or be printed twice.
  const auto changed = values_of(unusual());
  const auto plain = values_of(RunConfig{});
  for (const auto& [name, value] : changed) EXPECT_NE(value, plain.at(name)) << name;
  RunConfig c;
  for (const auto& o : describe_options()) {
    // Set alone, an option changes its own value and no other.
    const std::string text = "[" + o.name.substr(0, o.name.find('.')) + "]\n" +
                             o.name.substr(o.name.find('.') + 1) + " = " +
                             ini_value(changed.at(o.name)) + "\n";
    RunConfig one;
    try {
      one = parse_ini(text);
    } catch (const Error&) {
      continue;  // not valid without its companions
    }
    std::set<std::string> differ;
    for (const auto& [name, value] : values_of(one))
      if (value != plain.at(name)) differ.insert(name);
    EXPECT_EQ(differ, std::set<std::string>{o.name});
  }
}

TEST_F(Options, DescriptionsAreComplete) {
  for (const auto& o : describe_options()) {
    EXPECT_FALSE(o.help.empty()) << o.name;
    EXPECT_FALSE(o.values.empty()) << o.name;
    EXPECT_EQ(o.value, o.default_value) << o.name;
  }
}

TEST_F(Options, IniReadsBackToTheSameConfiguration) {
  const RunConfig c = unusual();
  const RunConfig back = parse_ini(to_ini(c));
  EXPECT_EQ(values_of(back), values_of(c));
  EXPECT_EQ(to_ini(back), to_ini(c));
  // To the last bit, and to the last space.
  EXPECT_EQ(back.optimizer.learning_rate, 1.0 / 3.0);
  EXPECT_EQ(back.optimizer.minimum_learning_rate, 1e-300);
  EXPECT_EQ(back.model.rope_theta, c.model.rope_theta);
  EXPECT_EQ(back.model.dropout, 0.1f);
  EXPECT_EQ(back.run.seed, c.run.seed);
  EXPECT_EQ(back.run.directory, c.run.directory);
  EXPECT_EQ(back.data.path, c.data.path);
  EXPECT_EQ(to_ini(parse_ini(to_ini(RunConfig{}))), to_ini(RunConfig{}));
}

TEST_F(Options, CommandLineOverFileOverDefault) {
  const std::string path = file("[model]\nlayers = 3\nwidth = 128\n[train]\nsteps = 5\n");
  const RunConfig c = parse_config(path, {"--model.layers", "7", "--train.steps=9", "--train.steps",
                                          "10", "--optimizer.learning-rate", "2e-3"});
  EXPECT_EQ(c.model.layers, 7);
  EXPECT_EQ(c.model.width, 128);
  EXPECT_EQ(c.train.steps, 10);  // of two on the command line the last
  EXPECT_EQ(c.optimizer.learning_rate, 2e-3);
  EXPECT_EQ(c.model.heads, RunConfig{}.model.heads);
}

TEST_F(Options, FilesHaveCommentsQuotesAndOtherLineEnds) {
  const RunConfig c =
      parse_config(file("\xEF\xBB\xBF# first\r\n; second\r\nrun.seed = 4\r\n[data] ; third\r\n"
                        "path = \"a #1; b\" # fourth\r\n  sequence-length=2k;not a comment\r\n"),
                   {"--data.sequence-length", "2k"});
  EXPECT_EQ(c.run.seed, 4u);
  EXPECT_EQ(c.data.path, "a #1; b");
  const RunConfig d = parse_config(
      file("[run]\ndirectory = a#b;c # d\n[data]\npath =\nsequence-length = 2k ; e\n"), {});
  EXPECT_EQ(d.run.directory, "a#b;c");
  EXPECT_EQ(d.data.path, "");
  EXPECT_EQ(d.data.sequence_length, 2048);
}

TEST_F(Options, ValuesOfEveryKind) {
  const auto with = [](const std::string& name, const std::string& value) {
    return parse_config("", {"--" + name, value});
  };
  EXPECT_EQ(with("data.sequence-length", "8k").data.sequence_length, 8192);
  EXPECT_EQ(with("data.sequence-length", "1M").data.sequence_length, 1 << 20);
  for (const char* on : {"on", "true", "yes", "1"})
    EXPECT_TRUE(with("model.bias", on).model.bias) << on;
  for (const char* off : {"off", "false", "no", "0"})
    EXPECT_FALSE(with("model.tie-embeddings", off).model.tie_embeddings) << off;
  EXPECT_EQ(with("memory.budget", "3G").memory.budget, std::int64_t{3} << 30);
  EXPECT_EQ(with("memory.keep", "block").memory.keep, model::Keep::kBlock);
  EXPECT_EQ(with("optimizer.clip", ".5").optimizer.clip, 0.5);
  EXPECT_EQ(with("optimizer.clip", "0").optimizer.clip, 0.0);
}

TEST_F(Options, ValuesThatMakeNoSenseAreToldWhatWould) {
  const std::map<std::pair<std::string, std::string>, std::string> cases = {
      {{"model.mlp", "relu"}, "gelu or swiglu"},
      {{"model.bias", "maybe"}, "on or off"},
      {{"train.steps", "many"}, "whole number"},
      {{"train.steps", "1.5"}, "whole number"},
      {{"train.steps", "1e6"}, "whole number"},
      {{"train.steps", ""}, "whole number"},
      {{"train.steps", "-1"}, "at least 1"},
      {{"train.steps", "9223372036854775807k"}, "at most"},
      {{"run.threads", "3000000000"}, "at most"},
      {{"run.seed", "-1"}, "0 or more"},
      {{"optimizer.learning-rate", "fast"}, "number such as"},
      {{"optimizer.learning-rate", "nan"}, "number such as"},
      {{"optimizer.clip", "inf"}, "number such as"},
      {{"optimizer.clip", "1.0x"}, "number such as"},
  };
  for (const auto& [setting, valid] : cases) {
    const auto found = problems("", {"--" + setting.first + "=" + setting.second});
    ASSERT_EQ(found.size(), 1u) << setting.first << "=" << setting.second;
    EXPECT_NE(found[0].find(setting.first + "=" + setting.second + ":"), std::string::npos)
        << found[0];
    EXPECT_NE(found[0].find(valid), std::string::npos) << found[0];
  }
}

TEST_F(Options, AllProblemsComeAtOnceEachWithItsPlace) {
  const std::string path = file(
      "[model]\n"
      "layer = 3\n"      // 2: misspelt
      "width = wide\n"   // 3: no number
      "heads = 7\n"      // would not divide the default width, which is not what was meant
      "dropout = 1.5\n"  // problems_of
      "[train]\n"
      "steps 5\n"  // 7: no equals sign
      "micro-batch = 2\n"
      "micro-batch = 4\n"  // 9: twice
      "[optimiser]\n"
      "clip = 1\n"       // 11: misspelt section
      "[data\n"          // 12: no bracket
      "pack = none\n");  // not to be taken for [optimiser]
  const auto found = problems(path, {"--data.sequence-lenght", "8k", "--train.global-batch", "3",
                                     "7", "--mesh.pipeline", "1"});
  const std::vector<std::string> expected = {
      "command line: there is no setting 'data.sequence-lenght': did you mean "
      "data.sequence-length?",
      "command line: '7' stands alone",
      "command line: there is no setting 'mesh.pipeline'",
      path + ":2: there is no setting 'model.layer': did you mean model.layers?",
      path + ":3: model.width=wide: it must be a whole number",
      path + ":7: 'steps 5': a setting is written key = value",
      path + ":9: train.micro-batch was already set in line 8",
      path + ":11: there is no setting 'optimiser.clip': did you mean optimizer.clip?",
      path + ":12: '[data': a section is written [name]",
      "model.dropout=1.5: ",
      "train.global-batch=3 is not a multiple of train.micro-batch=2",
  };
  for (const std::string& e : expected)
    EXPECT_EQ(std::count_if(found.begin(), found.end(),
                            [&](const std::string& f) { return f.rfind(e, 0) == 0; }),
              1)
        << e;
  for (const std::string& f : found) EXPECT_EQ(f.find("model.heads=7"), std::string::npos) << f;
  std::string all;
  for (const std::string& f : found) all += f + "\n";
  EXPECT_EQ(found.size(), expected.size() + 1)
      << all;  // and 'pack = none', which stands in no section
}

TEST_F(Options, NothingIsGuessed) {
  // Boost would take a unique beginning for the whole name.
  EXPECT_EQ(problems("", {"--model.layer", "3"}).size(), 1u);
  EXPECT_EQ(problems("", {"--model.layers"}).size(), 1u);
}

TEST_F(Options, AFileThatCannotBeReadIsAProblem) {
  for (const std::string& path : {directory_.file("none.ini"), directory_.path()}) {
    const auto found = problems(path, {});
    ASSERT_EQ(found.size(), 1u) << path;
    EXPECT_NE(found[0].find(path), std::string::npos) << found[0];
  }
}

TEST_F(Options, NearestNames) {
  std::vector<std::string> names;
  for (const auto& o : describe_options()) names.push_back(o.name);
  EXPECT_EQ(nearest("model.layer", names), "model.layers");
  EXPECT_EQ(nearest("model.kv_heads", names), "model.kv-heads");
  EXPECT_EQ(nearest("train.learning-rate", names), "optimizer.learning-rate");  // the wrong section
  EXPECT_EQ(nearest("modle.dropout", names), "model.dropout");
  EXPECT_EQ(nearest("model.frobnicate", names), "");
  EXPECT_EQ(nearest("trian", {"prepare", "train", "config"}), "train");
  EXPECT_EQ(nearest("jsn", {"ranks", "json"}), "json");
}

}  // namespace
}  // namespace longspan::launcher
