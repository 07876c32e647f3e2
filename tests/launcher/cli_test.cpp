// label: slow
// timeout: 300
/// The program from the outside: what a user types, what comes back, and with which exit status.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "launcher/run_directory.hpp"
#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using testing_support::longspan;
using testing_support::longspan_path;
using testing_support::ProcessResult;
using testing_support::run_process;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Steps, losses and gradient norms as written: equal texts are equal bits.
std::vector<std::string> numbers_of(const std::string& metrics) {
  std::vector<std::string> rows;
  std::istringstream lines(read(metrics));
  for (std::string line; std::getline(lines, line);) {
    const auto j = nlohmann::json::parse(line);
    rows.push_back(j["step"].dump() + " " + j["loss"].dump() + " " + j["grad_norm"].dump() + " " +
                   j["tokens"].dump());
  }
  return rows;
}

std::vector<double> losses_of(const std::string& metrics) {
  std::vector<double> losses;
  std::istringstream lines(read(metrics));
  for (std::string line; std::getline(lines, line);)
    losses.push_back(nlohmann::json::parse(line)["loss"]);
  return losses;
}

struct BadInput {
  std::string name;
  std::vector<std::string> arguments;
  int status;
  std::string says;
};

class Cli : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing_support::TemporaryDirectory;
    data_ = folder_->file("d.h5");
    // Two folders of a fixed text: losses must not change with our own sources.
    for (unsigned part : {1u, 2u}) {
      const std::string source = folder_->file("text" + std::to_string(part));
      std::filesystem::create_directory(source);
      std::ofstream(source + "/sample.txt") << testing_support::sample_text(350'000, part);
    }
    const auto r = longspan({"prepare", "--kind", "text", "--output", data_, folder_->file("text1"),
                             folder_->file("text2")});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::vector<std::string> tiny(const std::string& run, std::vector<std::string> more = {}) {
    std::vector<std::string> all = {"--config",
                                    LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                    "--data.path",
                                    data_,
                                    "--run.directory",
                                    folder_->file(run),
                                    "--data.sequence-length",
                                    "128",
                                    "--train.steps",
                                    "8",
                                    "--train.global-batch",
                                    "4",
                                    "--train.micro-batch",
                                    "1",
                                    "--train.validate-every",
                                    "4",
                                    "--model.dropout",
                                    "0.1",
                                    "--checkpoint.every",
                                    "0"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  static ProcessResult launch(int ranks, std::vector<std::string> settings) {
    settings.insert(settings.begin(),
                    {"launch", "--max-restarts", "0", "--ranks", std::to_string(ranks)});
    return longspan(settings);
  }
  static std::string metrics(const std::string& run) {
    return folder_->file(run) + "/metrics.jsonl";
  }

  static testing_support::TemporaryDirectory* folder_;
  static std::string data_;
};
testing_support::TemporaryDirectory* Cli::folder_ = nullptr;
std::string Cli::data_;

TEST_F(Cli, TrainsAloneUnderMpirunAndByLaunchWithTheSameLosses) {
  auto alone = tiny("alone");
  alone.insert(alone.begin(), "train");
  const auto a = longspan(alone);
  ASSERT_EQ(a.status, 0) << a.err << a.out;
  const auto one = losses_of(metrics("alone"));
  ASSERT_EQ(one.size(), 8u);
  EXPECT_LT(one.back(), one.front());

  // mfu is what the header says: model FLOPs of a step, per second, over the peak.
  std::smatch flops, peak;
  ASSERT_TRUE(std::regex_search(a.out, flops, std::regex("([0-9.e+]+) GFLOP \\(model FLOPs")));
  ASSERT_TRUE(std::regex_search(a.out, peak, std::regex("peak: ([0-9.]+) GFLOP/s")));
  std::istringstream lines(read(metrics("alone")));
  for (std::string line; std::getline(lines, line);) {
    const auto j = nlohmann::json::parse(line);
    const double expected = std::stod(flops[1]) / double(j["step_seconds"]) / std::stod(peak[1]);
    EXPECT_NEAR(double(j["mfu"]) / expected, 1.0, 0.02) << line;
  }

  std::vector<std::string> plain = {
      "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", longspan_path(), "train"};
  const auto settings = tiny("plain");
  plain.insert(plain.end(), settings.begin(), settings.end());
  const auto p = run_process(plain);
  ASSERT_EQ(p.status, 0) << p.err;
  for (int ranks : {2, 3, 4}) {
    for (const char* context : {"1", "2", "3", "4"}) {
      if (ranks % (context[0] - '0') != 0 || (4 % (ranks / (context[0] - '0'))) != 0) continue;
      const std::string name = "l" + std::to_string(ranks) + context;
      const auto r = launch(ranks, tiny(name, {"--mesh.context", context}));
      ASSERT_EQ(r.status, 0) << r.err << r.out;
      const auto losses = losses_of(metrics(name));
      ASSERT_EQ(losses.size(), one.size());
      for (std::size_t i = 0; i < one.size(); ++i)
        EXPECT_NEAR(losses[i] / one[i], 1.0, 1e-5) << name << " step " << i + 1;
    }
  }
  const auto losses = losses_of(metrics("plain"));
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(losses[i] / one[i], 1.0, 1e-5);
}

TEST_F(Cli, TheChoiceOfTheAttentionSchemeIsSaidOnceAndTrainsLikeOneRank) {
  const std::vector<std::string> window = {"--attention.window", "40"};
  ASSERT_EQ(launch(1, tiny("scheme_alone", window)).status, 0);
  const auto one = losses_of(metrics("scheme_alone"));
  struct Choice {
    const char *setting, *ranks, *says;
  };
  for (const Choice& c : {Choice{"auto", "2", "attention over 2 ranks: ring, because by formula"},
                          Choice{"hybrid", "4", "attention over 4 ranks: hybrid: 2 x 2 ranks"},
                          Choice{"hybrid", "3", "because attention.scheme=hybrid finds no divisor"},
                          Choice{"ring", "3", ""}}) {
    const std::string name = std::string("scheme_") + c.setting + c.ranks;
    auto settings = tiny(name, window);
    settings.insert(settings.end(), {"--attention.scheme", c.setting, "--mesh.context", c.ranks});
    const auto r = launch(c.ranks[0] - '0', settings);
    ASSERT_EQ(r.status, 0) << r.err << r.out;
    const std::string line = "attention over";
    const auto at = r.out.find(line);
    EXPECT_NE(r.out.find(c.says), std::string::npos) << r.out;
    EXPECT_EQ(at == std::string::npos, *c.says == '\0');
    if (at != std::string::npos) {
      EXPECT_EQ(r.out.find(line, at + 1), std::string::npos);
    }
    const auto losses = losses_of(metrics(name));
    ASSERT_EQ(losses.size(), one.size());
    for (std::size_t i = 0; i < one.size(); ++i)
      EXPECT_NEAR(losses[i] / one[i], 1.0, 1e-5) << name << " step " << i + 1;
  }
}

TEST_F(Cli, StoppedAndResumedEqualsUninterruptedBitForBit) {
  ASSERT_EQ(launch(2, tiny("whole")).status, 0);
  auto r = launch(2, tiny("parts", {"--train.stop-after", "3"}));
  EXPECT_EQ(r.status, 75) << r.err << r.out;
  EXPECT_EQ(numbers_of(metrics("parts")).size(), 3u);
  r = launch(2, tiny("parts"));
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("continuing from"), std::string::npos);
  EXPECT_EQ(numbers_of(metrics("parts")), numbers_of(metrics("whole")));
  // Already finished: nothing to do, nothing changed.
  EXPECT_EQ(launch(2, tiny("parts")).status, 0);
  EXPECT_EQ(numbers_of(metrics("parts")), numbers_of(metrics("whole")));
}

/// One weight matrix on one rank, its parts on another number of ranks: the same run.
TEST_F(Cli, TrainsWithSharedWeightsAndResumesOnAnyTensorRanks) {
  const std::vector<std::string> model = {"--model.heads", "4",   "--model.kv-heads", "2",
                                          "--model.bias",  "true"};
  const auto settings = [&](const std::string& name, const char* tensor,
                            std::vector<std::string> more = {}) {
    auto all = tiny(name, model);
    all.insert(all.end(), {"--mesh.tensor", tensor});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  ASSERT_EQ(launch(1, settings("t1", "1")).status, 0);
  const auto one = losses_of(metrics("t1"));
  struct Case {
    const char* name;
    int first_ranks;
    const char* first_tensor;
    int then_ranks;
    const char* then_tensor;
    std::vector<std::string> more;
  };
  for (const Case& c :
       {Case{"t2_1", 2, "2", 1, "1", {}}, Case{"t1_2", 1, "1", 2, "2", {}},
        Case{"t4_2", 4, "4", 2, "2", {}},
        Case{"t2_4", 4, "2", 4, "4", {"--mesh.data", "1", "--mesh.context", "2"}}}) {
    SCOPED_TRACE(c.name);
    auto first = c.more;
    first.insert(first.end(), {"--train.stop-after", "3"});
    const auto stopped = launch(c.first_ranks, settings(c.name, c.first_tensor, first));
    ASSERT_EQ(stopped.status, 75) << stopped.err << stopped.out;
    const auto check = longspan({"inspect", folder_->file(c.name), "--verify"});
    EXPECT_EQ(check.status, 0) << check.err << check.out;
    const auto r = launch(c.then_ranks, settings(c.name, c.then_tensor));
    ASSERT_EQ(r.status, 0) << r.err << r.out;
    const auto losses = losses_of(metrics(c.name));
    ASSERT_EQ(losses.size(), one.size());
    for (std::size_t i = 0; i < one.size(); ++i)
      EXPECT_NEAR(losses[i] / one[i], 1.0, 1e-5) << "step " << i + 1;
  }
  // On the same mesh the bits are those of a run without a break.
  ASSERT_EQ(launch(2, settings("t2", "2")).status, 0);
  ASSERT_EQ(launch(2, settings("t2_2", "2", {"--train.stop-after", "3"})).status, 75);
  ASSERT_EQ(launch(2, settings("t2_2", "2")).status, 0);
  EXPECT_EQ(numbers_of(metrics("t2_2")), numbers_of(metrics("t2")));
  // Only the dataset says how many tokens there are.
  const auto odd = launch(
      3, tiny("t3", {"--mesh.tensor", "3", "--model.heads", "3", "--model.head-size", "32"}));
  EXPECT_EQ(odd.status, 2);
  EXPECT_NE(odd.err.find("model.vocabulary=256 cannot be shared evenly by mesh.tensor=3 ranks: set "
                         "it to 258, or mesh.tensor=1"),
            std::string::npos)
      << odd.err;
}

TEST_F(Cli, LinesAfterTheCheckpointAreDroppedOnResume) {
  ASSERT_EQ(launch(1, tiny("dropped", {"--train.stop-after", "3"})).status, 75);
  std::ofstream(metrics("dropped"), std::ios::app)
      << R"({"step":4,"loss":1,"grad_norm":1,"tokens":1})"
      << "\n";
  ASSERT_EQ(launch(1, tiny("dropped")).status, 0);
  ASSERT_EQ(launch(1, tiny("dropped_whole")).status, 0);
  EXPECT_EQ(numbers_of(metrics("dropped")), numbers_of(metrics("dropped_whole")));
}

TEST_F(Cli, SignalsFinishTheStepSaveAndAskToBeRequeued) {
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    const std::string name = "signal" + std::to_string(signal);
    auto settings = tiny(name, {"--train.steps", "100000", "--train.validate-every", "0"});
    settings.insert(settings.begin(), {longspan_path(), "launch", "--ranks", "2"});
    // The table has begun: training is under way.
    const auto r = run_process(settings, "time left", signal);
    EXPECT_EQ(r.status, 75) << signal << r.err << r.out;
    EXPECT_TRUE(fs::exists(folder_->file(name) + "/checkpoints/latest/index.h5"));
    const auto check = longspan({"inspect", folder_->file(name), "--verify"});
    EXPECT_EQ(check.status, 0) << check.err << check.out;
  }
}

TEST_F(Cli, InspectAndGenerate) {
  ASSERT_EQ(launch(2, tiny("looked_at")).status, 0);
  auto r = longspan({"inspect", folder_->file("looked_at") + "/checkpoints/latest"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("attention.query.weight"), std::string::npos);
  r = longspan({"inspect", folder_->file("looked_at"), "--verify", "--json"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_TRUE(nlohmann::json::accept(r.out)) << r.out;
  r = longspan({"inspect", data_});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_TRUE(nlohmann::json::accept(longspan({"inspect", data_, "--json"}).out));

  const std::vector<std::string> greedy = {"generate", "--checkpoint",  folder_->file("looked_at"),
                                           "--prompt", "namespace ",    "--tokens",
                                           "20",       "--temperature", "0"};
  const auto first = longspan(greedy), second = longspan(greedy);
  EXPECT_EQ(first.status, 0) << first.err;
  EXPECT_EQ(first.out, second.out);
  EXPECT_EQ(first.out.rfind("namespace ", 0), 0u);
  EXPECT_GE(first.out.size(), 10u + 20u);
}

TEST_F(Cli, GenerateRefusesWhatItCannotContinue) {
  const std::string text = folder_->file("ids.txt"), data = folder_->file("ids.h5");
  {
    std::ofstream ids(text);
    for (int i = 0; i < 3000; ++i) ids << i % 100 << ' ';
  }
  ASSERT_EQ(longspan({"prepare", "--kind", "tokens", "--text-ids", "--output", data, text}).status,
            0);
  ASSERT_EQ(launch(1, tiny("ids", {"--data.path", data, "--train.steps", "1"})).status, 0);
  const auto generate = [&](std::vector<std::string> more) {
    std::vector<std::string> all = {"generate", "--checkpoint", folder_->file("ids"), "--tokens",
                                    "3"};
    all.insert(all.end(), more.begin(), more.end());
    return longspan(all);
  };
  const auto good = generate({"--prompt", "1 99"});
  EXPECT_EQ(good.status, 0) << good.err;
  EXPECT_EQ(good.out.rfind("1 99 ", 0), 0u) << good.out;
  std::string many;
  for (int i = 0; i < 128; ++i) many += "1 ";
  const std::vector<BadInput> cases = {
      {"id beyond the embedding", {"--prompt", "1 99999"}, 2, "99999"},
      {"folder as prompt file", {"--prompt-file", folder_->path()}, 2, "it is a folder"},
      {"no prompt file", {"--prompt-file", folder_->file("none")}, 2, "No such file"},
      {"two prompts", {"--prompt", "1", "--prompt-file", text}, 2, "only one"},
      {"no prompt at all", {}, 2, "--prompt"},
      {"empty prompt", {"--prompt", ""}, 2, "empty"},
      {"prompt as long as the model", {"--prompt", many}, 2, "to at most 127"},
      {"too many tokens", {"--prompt", "1", "--tokens", "128"}, 2, "at most 127"},
      {"temperature", {"--prompt", "1", "--temperature", "nan"}, 2, "--temperature=nan"},
      {"top-p", {"--prompt", "1", "--top-p", "nan"}, 2, "--top-p=nan"},
      {"threads", {"--prompt", "1", "--threads", "-1"}, 2, "--threads=-1"},
  };
  for (const auto& c : cases) {
    const auto r = generate(c.arguments);
    EXPECT_EQ(r.status, c.status) << c.name << ": " << r.err << r.out;
    EXPECT_NE(r.err.find(c.says), std::string::npos) << c.name << ": " << r.err;
    EXPECT_EQ(testing_support::count_lines(r.err), 1) << c.name << ": " << r.err;
    EXPECT_EQ(r.out, "") << c.name;
  }
}

TEST_F(Cli, BadInputIsOneClearLineAndTheRightStatus) {
  const std::string empty = folder_->file("empty.h5"), foreign = folder_->file("foreign.h5"),
                    cut = folder_->file("cut.h5");
  std::ofstream(empty).flush();
  std::ofstream(foreign) << "this is no HDF5 file";
  const std::string whole = read(data_);
  std::ofstream(cut, std::ios::binary) << whole.substr(0, whole.size() / 2);
  const std::string fasta = folder_->file("bad.fa");
  std::ofstream(fasta) << ">one\nACGTJ\n";
  const auto with = [&](const std::string& path) { return tiny("bad", {"--data.path", path}); };
  auto train = [](std::vector<std::string> settings) {
    settings.insert(settings.begin(), {"launch", "--ranks", "2"});
    return settings;
  };
  // --data.path stands twice then: the last one counts.
  const std::vector<BadInput> cases = {
      {"missing dataset", train(with(folder_->file("none.h5"))), 3, "none.h5"},
      {"empty dataset", train(with(empty)), 3, "empty.h5"},
      {"foreign dataset", train(with(foreign)), 3, "foreign.h5"},
      {"truncated dataset", train(with(cut)), 3, "cut.h5"},
      {"too short", train(tiny("bad", {"--data.sequence-length", "100m"})), 2,
       "data.sequence-length"},
      {"small vocabulary", train(tiny("bad", {"--model.vocabulary", "64"})), 2,
       "model.vocabulary=64"},
      {"mesh", train(tiny("bad", {"--mesh.data", "3"})), 2, "mesh.data=3"},
      {"tensor mesh", train(tiny("bad", {"--mesh.tensor", "2", "--model.mlp-width", "93"})), 2,
       "model.mlp-width=93 cannot be shared evenly by mesh.tensor=2 ranks: set it to 94"},
      {"batch", train(tiny("bad", {"--train.global-batch", "3"})), 2, "train.global-batch=3"},
      {"unknown key", train(tiny("bad", {"--model.layer", "3"})), 2, "model.layers"},
      {"unwritable run directory", train(tiny("bad", {"--run.directory", "/proc/nothing"})), 1,
       "/proc/nothing"},
      {"unknown command", {"trian"}, 2, "train"},
      {"unknown flag", {"inspect", "--jsn", data_}, 2, "json"},
      {"unknown letters",
       {"prepare", "--kind", "genome", "--output", folder_->file("g.h5"), fasta},
       3,
       "J"},
      {"missing input",
       {"prepare", "--kind", "text", "--output", folder_->file("t.h5"), folder_->file("nowhere")},
       2,
       "nowhere"},
      {"no checkpoint",
       {"generate", "--checkpoint", folder_->file("nothing"), "--prompt", "x"},
       3,
       "nothing"},
  };
  for (const auto& c : cases) {
    const auto r = longspan(c.arguments);
    EXPECT_EQ(r.status, c.status) << c.name << ": " << r.err << r.out;
    EXPECT_NE(r.err.find(c.says), std::string::npos) << c.name << ": " << r.err;
    EXPECT_EQ(testing_support::count_lines(r.err), 1) << c.name << ": " << r.err;
  }
}

TEST_F(Cli, AFreshRunDoesNotMixItsCheckpointsWithAnOldOnes) {
  const auto first =
      launch(1, tiny("fresh", {"--train.stop-after", "1", "--checkpoint.resume", "never"}));
  ASSERT_EQ(first.status, 75);
  EXPECT_NE(first.out.find("checkpoint.resume=auto continues"), std::string::npos) << first.out;
  const auto r = launch(1, tiny("fresh", {"--checkpoint.resume", "never"}));
  EXPECT_EQ(r.status, 2) << r.err;
  EXPECT_NE(r.err.find("step-0000000001"), std::string::npos) << r.err;
}

TEST_F(Cli, ASecondRunInTheSameDirectoryIsRefused) {
  const std::string directory = folder_->file("shared");
  ASSERT_EQ(launch(1, tiny("shared", {"--train.stop-after", "1"})).status, 75);
  const std::string before = read(directory + "/config.ini");
  {
    const launcher::RunDirectory first(directory);
    const auto second = launch(2, tiny("shared", {"--train.steps", "9"}));
    EXPECT_EQ(second.status, 1) << second.out;
    EXPECT_NE(second.err.find(directory + " is the directory of a run that goes on (process "),
              std::string::npos)
        << second.err;
    EXPECT_EQ(testing_support::count_lines(second.err), 1) << second.err;
  }
  EXPECT_EQ(read(directory + "/config.ini"), before);
  EXPECT_EQ(launch(2, tiny("shared", {"--train.steps", "9"})).status, 0);
  EXPECT_NE(read(directory + "/config.ini"), before);
}

TEST_F(Cli, AVocabularyThatDoesNotFitTheCheckpointIsIncompatible) {
  ASSERT_EQ(launch(1, tiny("vocabulary", {"--train.stop-after", "1"})).status, 75);
  const auto r = launch(1, tiny("vocabulary", {"--model.vocabulary", "320"}));
  EXPECT_EQ(r.status, 3) << r.err;
  EXPECT_NE(r.err.find("model.vocabulary=256"), std::string::npos) << r.err;
}

TEST_F(Cli, AModelThatDoesNotFitTheCheckpointIsIncompatible) {
  const std::string checkpoint = folder_->file("shape") + "/checkpoints/latest";
  ASSERT_EQ(launch(1, tiny("shape", {"--train.stop-after", "1"})).status, 75);
  // The tensors of these are all there, with the right shapes.
  const std::vector<std::vector<std::string>> others = {
      {"--model.layers", "1"}, {"--model.heads", "4"}, {"--model.position", "none"}};
  for (const auto& other : others) {
    auto settings = tiny("other_model", {"--checkpoint.resume", checkpoint});
    settings.insert(settings.end(), other.begin(), other.end());
    const auto r = launch(1, settings);
    EXPECT_EQ(r.status, 3) << other[0] << r.out;
    EXPECT_NE(r.err.find(other[0].substr(2) + "=" + other[1]), std::string::npos) << r.err;
    EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
  }
}

TEST_F(Cli, ARunThatBeganFromAPathContinuesFromItsOwnCheckpoints) {
  ASSERT_EQ(launch(1, tiny("origin", {"--train.stop-after", "2"})).status, 75);
  const std::string origin =
      fs::canonical(folder_->file("origin") + "/checkpoints/latest").string();
  const std::vector<std::string> from = {"--checkpoint.resume", origin};
  auto stopped = from;
  stopped.insert(stopped.end(), {"--train.stop-after", "3"});
  ASSERT_EQ(launch(1, tiny("branch", stopped)).status, 75);
  const auto r = launch(1, tiny("branch", from));
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("branch/checkpoints/step-0000000005 after step 5"), std::string::npos)
      << r.out;
  ASSERT_EQ(launch(1, tiny("origin")).status, 0);
  auto whole = numbers_of(metrics("origin"));
  whole.erase(whole.begin(), whole.begin() + 2);
  EXPECT_EQ(numbers_of(metrics("branch")), whole);
  // Going back in a directory whose later checkpoints stay would mix two histories.
  const auto back = launch(1, tiny("origin", from));
  EXPECT_EQ(back.status, 2) << back.out;
  EXPECT_NE(back.err.find("step-0000000008 exists"), std::string::npos) << back.err;
}

TEST_F(Cli, PatienceEndsTheRunAndOutlivesAResume) {
  // A rate this high soon makes it worse and worse.
  std::vector<std::string> hopeless = {"--optimizer.learning-rate",
                                       "0.5",
                                       "--optimizer.schedule",
                                       "constant",
                                       "--train.steps",
                                       "100",
                                       "--train.validate-every",
                                       "1"};
  auto patient = hopeless;
  patient.insert(patient.end(), {"--train.patience", "3"});
  const auto whole = launch(1, tiny("patience", patient));
  EXPECT_EQ(whole.status, 0) << whole.err;
  EXPECT_NE(whole.out.find("has not improved on"), std::string::npos) << whole.out;
  const auto steps = numbers_of(metrics("patience"));
  ASSERT_LT(steps.size(), 100u);
  ASSERT_GT(steps.size(), 3u);
  // The same in two parts; then once more: it is over.
  auto part = patient;
  part.insert(part.end(), {"--train.stop-after", std::to_string(steps.size() - 1)});
  EXPECT_EQ(launch(1, tiny("patience_parts", part)).status, 75);
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(launch(1, tiny("patience_parts", patient)).status, 0);
    EXPECT_EQ(numbers_of(metrics("patience_parts")), steps);
  }
  // Without patience, a run that is stopped while it gets worse is not done.
  hopeless.insert(hopeless.end(), {"--train.stop-after", std::to_string(steps.size())});
  EXPECT_EQ(launch(1, tiny("patience_off", hopeless)).status, 75);
}

TEST_F(Cli, ALossThatIsNotANumberNamesStepLayerAndLastGoodCheckpoint) {
  const auto r =
      launch(2, tiny("diverges", {"--optimizer.learning-rate", "1e30", "--optimizer.warmup-steps",
                                  "0", "--checkpoint.every", "1", "--optimizer.clip", "0"}));
  EXPECT_EQ(r.status, 1) << r.out;
  EXPECT_NE(r.err.find("step "), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("first not finite: "), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("step-0000000001"), std::string::npos) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
}

TEST_F(Cli, EveryCommandHasHelpWithAnExample) {
  for (const char* command : {"prepare", "train", "launch", "inspect", "generate", "config"}) {
    const auto r = longspan({command, "--help"});
    EXPECT_EQ(r.status, 0) << command;
    EXPECT_NE(r.out.find("longspan " + std::string(command)), std::string::npos)
        << command << r.out;
    EXPECT_EQ(r.err, "");
  }
  const auto r = longspan({"--help"});
  EXPECT_EQ(r.status, 0);
  EXPECT_NE(r.out.find("prepare"), std::string::npos);
  EXPECT_EQ(longspan({}).status, 2);
}

}  // namespace
}  // namespace longspan
