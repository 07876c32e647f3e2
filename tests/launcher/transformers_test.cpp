// label: slow
// timeout: 400
/// Hugging Face's `transformers` loads what Longspan trained, with the same logits; and Longspan
/// samples from, and continues, what transformers saved (transformers_check.py). Skipped where the
/// Python of the tests has no torch or transformers (tests/support/python_environment.sh
/// --transformers).
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/command.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"
#include "tests/launcher/convert_fixture.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::json;
using testing_support::longspan;
using testing_support::ProcessResult;
namespace fs = std::filesystem;

constexpr const char* kPython = LONGSPAN_SOURCE_DIR "/.venv-tests/bin/python";
constexpr const char* kCheck = LONGSPAN_SOURCE_DIR "/tests/launcher/transformers_check.py";

/// One run of Python serves all tests: importing torch takes longer than they do.
class Transformers : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing_support::TemporaryDirectory;
    if (!fs::exists(kPython)) {
      missing_ = "there is no .venv-tests";
      return;
    }
    fs::create_directories(folder_->file("exported"));
    export_models();
    train_and_export();
    python_ = testing_support::run_process({kPython, kCheck, folder_->path()});
    if (python_.status == 77) missing_ = python_.out;
  }
  static void TearDownTestSuite() { delete folder_; }
  void SetUp() override {
    if (!missing_.empty()) GTEST_SKIP() << missing_;
  }

  /// Writes what transformers should find.
  static void expect_logits(const std::string& name, const std::string& checkpoint,
                            std::int64_t vocabulary, const std::string& dtype) {
    const auto tokens = some_tokens(20, vocabulary);
    std::ofstream(folder_->file("exported/" + name + ".json"))
        << Json{{"tokens", tokens},
                {"logits", logits_of(checkpoint, tokens)},
                {"vocabulary", vocabulary},
                {"torch_dtype", dtype}};
  }

  static void export_models() {
    using Words = std::vector<std::string>;
    struct Case {
      const char* name;
      Words settings;
      std::int64_t vocabulary, tokens;
      bool bf16;
    };
    const Words untied = {"--model.tie-embeddings", "off"}, tied = {"--model.tie-embeddings", "on"};
    for (const Case& c : std::vector<Case>{
             {"gpt2", gpt2_settings(), 50, 50, false},  // 64 rows, 14 of them padding
             {"gpt2-untied", gpt2_settings() + untied + Words{"--model.norm-epsilon", "1e-3"}, 64,
              64, false},
             {"gpt2-bf16", gpt2_settings(), 64, 64, true},
             {"llama", llama_settings(), 50, 50, false},
             {"llama-narrow-heads",
              llama_settings() + tied + Words{"--model.head-size", "0", "--model.kv-heads", "0"},
              64, 64, false},
             {"llama-bias-bf16", llama_settings() + Words{"--model.bias", "on"}, 64, 64, true}}) {
      const std::string run = folder_->file(std::string("run-") + c.name);
      const std::string from =
          write_model(run, config_of(c.settings, c.vocabulary), R"({"kind":"ids"})", c.bf16);
      const auto r =
          longspan({"convert", from, folder_->file(std::string("exported/") + c.name),
                    "--vocabulary", std::to_string(c.tokens), "--dtype", c.bf16 ? "bf16" : "fp32"});
      EXPECT_EQ(r.status, 0) << r.err;
      expect_logits(c.name, from, c.tokens, c.bf16 ? "bfloat16" : "float32");
    }
  }

  /// A GPT-2 that has learned something: on two ranks, its sequence shared.
  static void train_and_export() {
    auto r = longspan({"prepare", "--kind", "text", "--output", folder_->file("d.h5"),
                       LONGSPAN_SOURCE_DIR "/model"});
    EXPECT_EQ(r.status, 0) << r.err;
    r = longspan(
        std::vector<std::string>{"launch", "--ranks", "2", "--data.path", folder_->file("d.h5"),
                                 "--run.directory", folder_->file("run"), "--mesh.context", "2",
                                 "--train.steps", "60", "--train.global-batch", "8",
                                 "--train.micro-batch", "8", "--optimizer.learning-rate", "3e-3"} +
        gpt2_settings());
    EXPECT_EQ(r.status, 0) << r.out << r.err;
    r = longspan({"convert", folder_->file("run"), folder_->file("exported/trained"), "--to",
                  "huggingface"});
    EXPECT_EQ(r.status, 0) << r.err;
    expect_logits("trained", folder_->file("run/checkpoints/latest"), 256, "float32");
  }

  static std::vector<double> losses(const std::string& run) {
    std::vector<double> result;
    std::ifstream lines(run + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);)
      result.push_back(Json::parse(line)["loss"].get<double>());
    return result;
  }

  static testing_support::TemporaryDirectory* folder_;
  static std::string missing_;
  static ProcessResult python_;
};
testing_support::TemporaryDirectory* Transformers::folder_ = nullptr;
std::string Transformers::missing_;
ProcessResult Transformers::python_;

TEST_F(Transformers, ComputesTheSameLogitsFromWhatWeExport) {
  EXPECT_EQ(python_.status, 0) << python_.out << python_.err;
  std::cout << python_.out;
  EXPECT_EQ(testing_support::count_lines(python_.out), 7) << python_.out;
}

TEST_F(Transformers, LongspanComputesTheSameLogitsFromWhatItSaved) {
  for (const char* name :
       {"gpt2", "gpt2-shards", "gpt2-without-output", "llama", "llama-bf16", "llama-fp16-tied"}) {
    SCOPED_TRACE(name);
    const std::string saved = folder_->file(std::string("saved/") + name), to = saved + "-imported";
    ASSERT_TRUE(fs::exists(saved + ".json")) << python_.out << python_.err;
    const auto r = longspan({"convert", saved, to});
    ASSERT_EQ(r.status, 0) << r.err;
    const Json expected = Json::parse(std::ifstream(saved + ".json"));
    const auto wanted = expected["logits"].get<std::vector<float>>();
    const auto found = logits_of(to, expected["tokens"].get<std::vector<std::int32_t>>());
    ASSERT_EQ(found.size(), wanted.size());
    float difference = 0, largest = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      difference = std::max(difference, std::abs(found[i] - wanted[i]));
      largest = std::max(largest, std::abs(wanted[i]));
    }
    std::cout << name << ": logits differ by " << difference << " at most, the largest is "
              << largest << "\n";
    EXPECT_LE(difference, 1e-4f);
    EXPECT_GT(largest, 1.0f);
  }
}

TEST_F(Transformers, WhatItSavedIsTrainedOnAndSampledFrom) {
  const std::string to = folder_->file("continued");
  auto r = longspan({"convert", folder_->file("saved/llama"), to, "--shards", "2",
                     "--data.sequence-length", "32", "--train.steps", "3", "--train.global-batch",
                     "4", "--run.directory", folder_->file("next")});
  ASSERT_EQ(r.status, 0) << r.err;
  r = longspan({"generate", "--checkpoint", to, "--prompt", "3 1 4 1 5", "--tokens", "8"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out.rfind("3 1 4 1 5 ", 0), 0u) << r.out;
  r = longspan({"launch", "--ranks", "2", "--config", to + "/config.ini", "--data.path",
                folder_->file("d.h5")});
  EXPECT_EQ(r.status, 0) << r.out << r.err;
  EXPECT_EQ(r.err.find("another dataset"), std::string::npos) << r.err;
  EXPECT_EQ(losses(folder_->file("next")).size(), 3u) << r.out;
  EXPECT_TRUE(fs::exists(folder_->file("next/checkpoints/step-0000000003"))) << r.out;
}

/// Through the other program's format and back: learning goes on where it was.
TEST_F(Transformers, TrainingGoesOnFromAnExportedModel) {
  const std::string to = folder_->file("returned");
  auto r = longspan({"convert", folder_->file("exported/trained"), to, "--data.path",
                     folder_->file("d.h5"), "--data.sequence-length", "24", "--train.steps", "4",
                     "--train.global-batch", "8", "--train.micro-batch", "8", "--run.directory",
                     folder_->file("onwards"), "--optimizer.learning-rate", "1e-6"});
  ASSERT_EQ(r.status, 0) << r.err;
  r = longspan({"train", "--config", to + "/config.ini"});
  ASSERT_EQ(r.status, 0) << r.out << r.err;
  EXPECT_EQ(r.err.find("another dataset"), std::string::npos) << r.err;
  const auto before = losses(folder_->file("run")), after = losses(folder_->file("onwards"));
  ASSERT_EQ(before.size(), 60u);
  ASSERT_EQ(after.size(), 4u);
  const double learned = before.front() - before.back();
  EXPECT_GT(learned, 1.5);
  for (const double loss : after) EXPECT_LT(loss, before.back() + 0.3 * learned);
}

}  // namespace
}  // namespace longspan::launcher
