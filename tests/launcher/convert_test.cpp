/// `longspan convert` without Python: shards, one file, there and back through safetensors, and
/// what it refuses.
#include "launcher/convert.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "io/safetensors.hpp"
#include "launcher/command.hpp"
#include "model/hugging_face.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/launcher/convert_fixture.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using io::testing::contains;
using Json = nlohmann::json;
namespace fs = std::filesystem;

const std::string kIds = R"({"kind":"ids"})";
const std::string kNucleotides = R"({"kind":"nucleotides","letters":"ACGTNRYSWKMBDHVU"})";

class Convert : public testing::Test {
 protected:
  /// What it prints.
  std::string convert(const std::vector<std::string>& arguments) {
    testing::internal::CaptureStdout();
    try {
      EXPECT_EQ(convert_command(arguments), ExitStatus::kDone);
    } catch (const Error& error) {
      ADD_FAILURE() << error.what();
    }
    return testing::internal::GetCapturedStdout();
  }
  /// The one line that refuses it; nothing may stay behind.
  std::string refusal(const std::vector<std::string>& arguments, ExitStatus status) {
    const auto before = io::testing::names_in(folder_.path());
    const std::string text = io::testing::error_of([&] { convert_command(arguments); }, status);
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_EQ(io::testing::names_in(folder_.path()), before) << text;
    return text;
  }
  std::string file(const std::string& name) const { return folder_.file(name); }
  std::string gpt2(std::int64_t vocabulary = 70, const std::vector<std::string>& more = {}) {
    return write_model(file("run/checkpoints"), config_of(gpt2_settings() + more, vocabulary),
                       kIds);
  }
  static Json json_of(const std::string& path) { return Json::parse(std::ifstream(path)); }

  testing_support::TemporaryDirectory folder_;
};

TEST_F(Convert, ReshardedTensorsAreTheSameBits) {
  const std::string from = gpt2();
  convert({file("run"), file("seven"), "--shards", "7"});
  convert({file("seven"), file("one"), "--to", "checkpoint", "--shards", "1"});
  convert({file("seven"), file("again"), "--to", "checkpoint"});
  for (const auto& [name, shards] : {std::pair("seven", 7u), {"one", 1u}, {"again", 7u}}) {
    expect_equal_tensors(from, file(name));
    io::CheckpointReader reader(file(name));
    EXPECT_TRUE(reader.verify().empty());
    EXPECT_EQ(reader.shard_files().size(), shards);
    EXPECT_EQ(io::testing::names_in(file(name)).size(), shards + 1);
    const io::CheckpointFacts &facts = reader.facts(),
                              original = io::CheckpointReader(from).facts();
    EXPECT_EQ(facts.step, original.step);
    EXPECT_EQ(facts.config, original.config);
    EXPECT_EQ(facts.next_sample, original.next_sample);
    EXPECT_EQ(facts.dataset_uuid, original.dataset_uuid);
    EXPECT_EQ(facts.loss_history, original.loss_history);
    EXPECT_NE(facts.uuid, original.uuid);
    EXPECT_EQ(facts.world_size, static_cast<int>(shards));
  }
}

TEST_F(Convert, MergedFileHasEveryTensorAndNeedsNoOther) {
  const std::string from = gpt2();
  convert({file("run"), file("whole.h5")});
  io::CheckpointReader reader(from);
  fs::rename(file("run"), file("gone"));
  const io::hdf5::File merged = io::hdf5::File::open(file("whole.h5"));
  EXPECT_EQ(merged.text_attribute("/", "format"), "longspan-checkpoint-merged");
  EXPECT_EQ(merged.i64_attribute("/", "step"), 12);
  EXPECT_EQ(merged.read_text("config"), reader.facts().config);
  io::CheckpointReader moved(file("gone/checkpoints/step-0000000012"));
  for (const io::TensorEntry& tensor : moved.tensors()) {
    const io::hdf5::DatasetInfo info = merged.info(tensor.name);
    EXPECT_TRUE(info.contiguous && !info.is_virtual) << tensor.name;
    EXPECT_EQ(info.shape, tensor.global_shape);
    std::vector<float> values(static_cast<std::size_t>(element_count(info.shape)));
    merged.read(tensor.name, DType::kF32, values.data());
    EXPECT_EQ(std::memcmp(values.data(), bytes_of(moved, tensor).data(), 4 * values.size()), 0)
        << tensor.name;
  }
}

TEST_F(Convert, GoesToHuggingFaceAndComesBackTheSame) {
  struct Case {
    const char* name;
    RunConfig config;
  };
  const std::vector<Case> cases = {
      {"gpt2", config_of(gpt2_settings(), 64)},
      {"gpt2 untied",
       config_of(gpt2_settings() + std::vector<std::string>{"--model.tie-embeddings", "off",
                                                            "--model.vocabulary", "70"},
                 0)},
      {"llama", config_of(llama_settings(), 64)},
      {"llama with biases",
       config_of(llama_settings() + std::vector<std::string>{"--model.bias", "on"}, 64)}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const std::string name = file(c.name);
    const std::string from = write_model(name + " run", c.config, kIds);
    convert({from, name, "--to", "huggingface", "--vocabulary",
             std::to_string(c.config.model.vocabulary)});
    EXPECT_EQ(io::testing::names_in(name),
              (std::vector<std::string>{"config.json", "model.safetensors"}));
    convert({name, name + " back", "--shards", "3"});
    expect_equal_tensors(from, name + " back", "model/");
    io::CheckpointReader back(name + " back");
    EXPECT_EQ(back.facts().step, 0);
    EXPECT_EQ(back.facts().next_sample, 0);
    EXPECT_EQ(back.tensors().size(), io::CheckpointReader(from).tensors().size());
    for (const io::TensorEntry& tensor : back.tensors())
      if (tensor.name.starts_with("optimizer/")) {
        EXPECT_EQ(back.statistics(tensor.name).norm, 0) << tensor.name;
      }
    const auto ours = describe_options(c.config),
               theirs = describe_options(parse_ini(back.facts().config));
    for (std::size_t i = 0; i < ours.size(); ++i)
      if (ours[i].name.starts_with("model.")) {
        EXPECT_EQ(ours[i].value, theirs[i].value) << ours[i].name;
      }
  }
}

TEST_F(Convert, PaddingOfTheVocabularyStaysBehind) {
  const RunConfig padded = config_of(gpt2_settings(), 16);  // 16 nucleotides in 64 rows
  ASSERT_EQ(padded.model.vocabulary, 64);
  const std::string from = write_model(file("run"), padded, kNucleotides);
  EXPECT_TRUE(contains(convert({from, file("out"), "--to", "huggingface"}), "48 rows of padding"));
  EXPECT_EQ(json_of(file("out/config.json"))["vocab_size"], 16);
  const io::SafetensorsFolder out(file("out"));
  const auto* table = out.find("transformer.wte.weight");
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->shape, (Shape{16, 32}));
  std::vector<float> values(16 * 32), expected(64 * 32);
  out.read(table->name, 0, 16 * 32, values.data());
  io::CheckpointReader(from).read(
      {"model/embedding.token.weight", DType::kF32, {64, 32}, {0, 0}, {64, 32}, expected.data()});
  EXPECT_TRUE(std::equal(values.begin(), values.end(), expected.begin()));
  // Whoever set a larger vocabulary has a use for it.
  const RunConfig wanted =
      config_of(gpt2_settings() + std::vector<std::string>{"--model.vocabulary", "100"}, 16);
  const std::string other = write_model(file("other"), wanted, kNucleotides);
  convert({other, file("all"), "--to", "huggingface"});
  EXPECT_EQ(json_of(file("all/config.json"))["vocab_size"], 100);
  convert({other, file("some"), "--vocabulary", "20"});
  EXPECT_EQ(json_of(file("some/config.json"))["vocab_size"], 20);
  EXPECT_TRUE(contains(refusal({other, file("x"), "--vocabulary", "101"}, ExitStatus::kUsage),
                       "the model has 100 rows"));
  // Ids: the dataset knows, and it is not here.
  EXPECT_TRUE(contains(refusal({gpt2(), file("x"), "--to", "huggingface"}, ExitStatus::kUsage),
                       "--vocabulary N"));
}

TEST_F(Convert, SettingsThatNobodyElseComputesAreNamed) {
  const auto says = [&](const std::vector<std::string>& settings, const std::string& what) {
    fs::remove_all(file("run"));
    const std::string from =
        write_model(file("run"), config_of(gpt2_settings() + settings, 64), kIds);
    const std::string text =
        refusal({from, file("x"), "--to", "huggingface", "--vocabulary", "64"}, ExitStatus::kUsage);
    EXPECT_TRUE(contains(text, what)) << text;
  };
  says({"--model.position", "sinusoidal"},
       "GPT-2 needs model.position=learned, Llama needs "
       "model.norm=rmsnorm, model.mlp=swiglu, model.position");
  says({"--model.bias", "off"}, "GPT-2 needs model.bias=on,");
  says({"--attention.window", "8"}, "GPT-2 needs attention.window=0,");
  says({"--attention.mask", "full"}, "GPT-2 needs attention.mask=causal,");
  says({"--model.kv-heads", "2"}, "GPT-2 needs model.kv-heads=0,");
  says({"--model.head-size", "16"}, "GPT-2 needs model.head-size=0,");
}

TEST_F(Convert, WrongUsageSaysWhatToDo) {
  const std::string from = gpt2();
  const auto usage = [&](const std::vector<std::string>& arguments, const std::string& what) {
    const std::string text = refusal(arguments, ExitStatus::kUsage);
    EXPECT_TRUE(contains(text, what)) << text;
  };
  usage({from}, "two paths");
  usage({from, from}, "exists");
  usage({file("none"), file("x")}, "no such file");
  usage({from, file("x")}, "--to huggingface");
  usage({from, file("x"), "--to", "pytorch"}, "checkpoint, hdf5 or huggingface");
  usage({from, file("x.h5"), "--shards", "2"}, "--shards does not go with");
  usage({from, file("x"), "--shards", "2", "--to", "huggingface"}, "--shards does not go with");
  usage({from, file("x"), "--shards", "-2"}, "--shards=-2");
  usage({from, file("x"), "--shards", "100000"}, "--shards=100000");
  usage({from, file("x"), "--dtype", "fp16"}, "fp32 or bf16");
  usage({from, file("x"), "--shards", "2", "--data.path", "d"}, "belongs to a run");
}

TEST_F(Convert, DamageIsFoundBeforeAnythingIsWritten) {
  const std::string from = gpt2();
  const std::string shard = from + "/shard-00000-of-00001.h5";
  io::testing::flip_byte(shard, static_cast<std::uint64_t>(io::file_size(shard) - 100));
  for (const std::vector<std::string>& more : {std::vector<std::string>{file("x"), "--shards", "2"},
                                               {file("x.h5")},
                                               {file("x"), "--vocabulary", "70"}}) {
    const std::string text = refusal(std::vector<std::string>{from} + more, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(text, "shard-00000-of-00001.h5: tensor 'optimizer/exp_avg_sq/")) << text;
  }
}

TEST_F(Convert, AFullDiskLeavesNothingBehind) {
  const std::string from = gpt2();
  for (const std::vector<std::string>& more : {std::vector<std::string>{file("x"), "--shards", "1"},
                                               {file("x.h5")},
                                               {file("x"), "--vocabulary", "70"}}) {
    const auto before = io::testing::names_in(folder_.path());
    {
      const io::testing::FileSizeLimit limit(30000);
      io::testing::error_of([&] { convert_command(std::vector<std::string>{from} + more); },
                            ExitStatus::kFailed);
    }
    EXPECT_EQ(io::testing::names_in(folder_.path()), before);
  }
}

/// An exported model whose config.json and header are changed.
class Import : public Convert {
 protected:
  void SetUp() override {
    convert({gpt2(), file("hf"), "--vocabulary", "70"});
    good_ = json_of(file("hf/config.json"));
  }
  /// Imports with `key` of config.json set to `value`.
  std::string refused(const char* key, const Json& value, ExitStatus status) {
    Json changed = good_;
    changed[key] = value;
    std::ofstream(file("hf/config.json")) << changed;
    return refusal({file("hf"), file("x")}, status);
  }
  Json good_;
};

TEST_F(Import, WhatWeComputeOtherwiseIsRefused) {
  const auto usage = [&](const char* key, const Json& value, const std::string& what) {
    const std::string text = refused(key, value, ExitStatus::kUsage);
    EXPECT_TRUE(contains(text, what)) << text;
  };
  usage("model_type", "mistral", "model_type is 'mistral'");
  usage("activation_function", "gelu", "activation_function=gelu");
  usage("activation_function", "relu", "activation_function=relu");
  usage("scale_attn_weights", false, "scale_attn_weights=false");
  usage("scale_attn_by_inverse_layer_idx", true, "scale_attn_by_inverse_layer_idx=true");
  const auto damaged = [&](const char* key, const Json& value, const std::string& what) {
    const std::string text = refused(key, value, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(text, what)) << text;
  };
  damaged("n_embd", 64, "by config.json it should be");
  damaged("n_layer", 1000000000, "layers, but there are");
  damaged("n_layer", 3, "'transformer.h.2.ln_1.weight', which is not there");
  damaged("n_layer", 1, "it has a tensor 'transformer.h.1.");
  damaged("tie_word_embeddings", false, "'lm_head.weight', which is not there");
  damaged("vocab_size", 71, "by config.json it should be [71, 32]");
  damaged("n_embd", -1, "whole number");
  damaged("n_embd", 1e300, "whole number");
  damaged("n_embd", "a", "whole number");
  damaged("layer_norm_epsilon", "a", "no number");
  std::ofstream(file("hf/config.json")) << std::string(100000, '[');
  EXPECT_TRUE(contains(refusal({file("hf"), file("x")}, ExitStatus::kDamaged), "nested deeper"));
}

TEST_F(Import, SettingsOfTheRunAreKeptAndTheModelsAreNot) {
  convert({file("hf"), file("in"), "--train.steps", "55", "--data.sequence-length", "16"});
  const RunConfig config = parse_config(file("in/config.ini"), {});
  EXPECT_EQ(config.train.steps, 55);
  EXPECT_EQ(config.data.sequence_length, 16);
  EXPECT_EQ(config.model.max_positions, 24);
  EXPECT_EQ(config.model.vocabulary, 70);
  EXPECT_EQ(config.checkpoint.resume, file("in"));
  EXPECT_EQ(to_ini(config), io::CheckpointReader(file("in")).facts().config);
  const std::string text =
      refusal({file("hf"), file("x"), "--model.layers", "3"}, ExitStatus::kUsage);
  EXPECT_TRUE(contains(text, "--model.layers=3: the model of")) << text;
  EXPECT_TRUE(
      contains(refusal({file("hf"), file("x"), "--data.sequence-length", "25"}, ExitStatus::kUsage),
               "model.max-positions=24"));
}

TEST_F(Import, RotaryScalingIsRefused) {
  const std::string from = write_model(file("llama/run"), config_of(llama_settings(), 64), kIds);
  fs::remove_all(file("hf"));
  convert({from, file("hf"), "--vocabulary", "64"});
  good_ = json_of(file("hf/config.json"));
  const Json scaled = {{"rope_type", "llama3"}, {"factor", 8.0}};
  EXPECT_TRUE(contains(refused("rope_scaling", scaled, ExitStatus::kUsage), "rope_scaling={"));
  EXPECT_TRUE(contains(refused("hidden_act", "gelu", ExitStatus::kUsage), "hidden_act=gelu"));
  EXPECT_TRUE(contains(refused("mlp_bias", true, ExitStatus::kUsage), "mlp_bias=true"));
  // As newer versions say it.
  good_.erase("rope_theta");
  good_["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5000.0}};
  std::ofstream(file("hf/config.json")) << good_;
  convert({file("hf"), file("in")});
  EXPECT_EQ(parse_config(file("in/config.ini"), {}).model.rope_theta, 5000.0);
}

}  // namespace
}  // namespace longspan::launcher
