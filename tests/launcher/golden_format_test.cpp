// label: slow
// timeout: 240
/// Files of format version 1, written once and kept: they are read, continued from, and read by a
/// program made from io/FORMAT.md alone, for ever. golden/format-1 has the numbers they must give:
/// run.ini made them of records.fa (prepare --kind genome --validation 0.2; launch --ranks 2
/// --mesh.context 2), with two blocks of some tensors in each shard.
#include <gtest/gtest.h>
#include <hdf5.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/dataset_layout.hpp"
#include "tests/io/dataset_fixture.hpp"
#include "tests/support/process.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing_support::longspan;
using testing_support::run_process;

const std::string kGolden = LONGSPAN_SOURCE_DIR "/tests/golden/format-1";
const std::string kDataset = kGolden + "/dataset.h5";
const std::string kCheckpoint = kGolden + "/step-0000000004";

json expected() {
  return json::parse(io::read_file(kGolden + "/expected.json"));
}

TEST(GoldenFormat, TheFilesAreOfTheVersionsThatAreRead) {
  EXPECT_EQ(io::kDatasetVersion, 1) << "make golden/format-" << io::kDatasetVersion << " too";
  EXPECT_EQ(io::kCheckpointFormatVersion, 1) << "make golden files of the new version too";
}

TEST(GoldenFormat, TheDatasetIsRead) {
  const json want = expected()["dataset"];
  const auto data = io::TokenDataset::open(kDataset);
  data.verify();
  const io::DatasetFacts& facts = data.facts();
  EXPECT_EQ(facts.tokens, want["tokens"]);
  EXPECT_EQ(facts.document_offsets.size() - 1, want["documents"]);
  EXPECT_EQ(facts.train_documents, want["train"]);
  EXPECT_EQ(facts.vocabulary, want["vocabulary"]);
  EXPECT_EQ(facts.uuid, want["uuid"]);
  EXPECT_EQ(json::parse(facts.tokenizer), want["tokenizer"]);
  const auto ids = io::all_tokens(data);
  EXPECT_EQ(std::accumulate(ids.begin(), ids.end(), std::int64_t{0}), want["sum"]);
  for (std::size_t i = 0; i < want["first"].size(); ++i) EXPECT_EQ(ids[i], want["first"][i]) << i;
}

TEST(GoldenFormat, TheCheckpointIsRead) {
  const json want = expected()["checkpoint"];
  io::CheckpointReader reader(kCheckpoint);
  EXPECT_TRUE(reader.verify().empty());
  const io::CheckpointFacts& facts = reader.facts();
  EXPECT_EQ(facts.step, want["step"]);
  EXPECT_EQ(facts.tokens_seen, want["tokens_seen"]);
  EXPECT_EQ(facts.uuid, want["checkpoint_uuid"]);
  EXPECT_EQ(facts.next_sample, want["cursor_next_sample"]);
  EXPECT_EQ(facts.seed, want["cursor_seed"]);
  EXPECT_EQ(facts.dataset_uuid, want["cursor_dataset_uuid"]);
  EXPECT_EQ(facts.world_size, want["world_size"]);
  EXPECT_EQ(facts.config, want["config"]);
  EXPECT_EQ(facts.created_unix, want["created_unix"]);
  ASSERT_EQ(facts.loss_history.size(), want["loss_history"].size());
  for (std::size_t i = 0; i < facts.loss_history.size(); ++i)
    EXPECT_EQ(facts.loss_history[i], want["loss_history"][i].get<float>());
  ASSERT_EQ(reader.tensors().size(), want["tensors"].size());
  std::size_t blocks = 0;
  for (const auto& tensor : reader.tensors()) {
    const json& of = want["tensors"][tensor.name];
    EXPECT_EQ(tensor.global_shape, of["shape"].get<Shape>()) << tensor.name;
    EXPECT_EQ(name_of(tensor.dtype), of["dtype"].get<std::string>()) << tensor.name;
    EXPECT_EQ(tensor.blocks.size(), of["blocks"]) << tensor.name;
    const auto statistics = reader.statistics(tensor.name);
    EXPECT_NEAR(statistics.norm, of["norm"].get<double>(), 1e-12) << tensor.name;
    EXPECT_NEAR(statistics.mean, of["mean"].get<double>(), 1e-12) << tensor.name;
    blocks = std::max(blocks, tensor.blocks.size());
  }
  EXPECT_EQ(blocks, 4U);
}

TEST(GoldenFormat, TheRunContinuesOnTheSameLayoutAndOnAnother) {
  const json want = expected()["resumed"];
  const testing_support::TemporaryDirectory folder;
  for (const char* ranks : {"2", "1"}) {
    const std::string run = folder.file(std::string("run-") + ranks);
    const auto r = longspan({"launch", "--ranks", ranks, "--config", kGolden + "/run.ini",
                             "--data.path", kDataset, "--run.directory", run, "--mesh.context",
                             ranks, "--checkpoint.resume", kCheckpoint});
    ASSERT_EQ(r.status, 0) << r.err << r.out;
    std::istringstream lines(io::read_file(run + "/metrics.jsonl"));
    std::size_t i = 0;
    for (std::string line; std::getline(lines, line); ++i) {
      const json got = json::parse(line);
      ASSERT_LT(i, want.size());
      EXPECT_EQ(got["step"], want[i]["step"]);
      EXPECT_EQ(got["tokens"], want[i]["tokens"]);
      const double loss = want[i]["loss"];
      EXPECT_NEAR(got["loss"].get<double>(), loss, 1e-5 * loss) << ranks << " ranks: " << line;
    }
    EXPECT_EQ(i, want.size());
  }
}

TEST(GoldenFormat, AReaderMadeOfTheDescriptionAloneSeesTheSame) {
  const std::string python = LONGSPAN_SOURCE_DIR "/.venv-tests/bin/python";
  if (!fs::exists(python))
    GTEST_SKIP() << "no " << python << ": tests/support/python_environment.sh";
  const auto read = [&](const char* kind, const std::string& path) {
    const auto r =
        run_process({python, LONGSPAN_SOURCE_DIR "/tests/io/format_reader.py", kind, path});
    EXPECT_EQ(r.status, 0) << r.err;
    json seen = r.status == 0 ? json::parse(r.out) : json();
    seen.erase("hashes");
    return seen;
  };
  EXPECT_EQ(read("dataset", kDataset), expected()["dataset"]);
  EXPECT_EQ(read("checkpoint", kCheckpoint), expected()["checkpoint"]);
  // What the program writes today, against what it prints of it.
  const testing_support::TemporaryDirectory folder;
  const std::string data = folder.file("d.h5"), run = folder.file("run");
  ASSERT_EQ(
      longspan({"prepare", "--kind", "text", "--output", data, kGolden + "/records.fa"}).status, 0);
  const json dataset = json::parse(longspan({"inspect", data, "--json"}).out);
  const json seen = read("dataset", data);
  EXPECT_EQ(seen["uuid"], dataset["uuid"]);
  EXPECT_EQ(seen["tokens"], dataset["tokens"]);
  const auto trained = longspan({"launch", "--ranks", "2", "--config", kGolden + "/run.ini",
                                 "--data.path", data, "--run.directory", run, "--model.vocabulary",
                                 "0", "--train.steps", "2", "--mesh.context", "2"});
  ASSERT_EQ(trained.status, 0) << trained.err;
  const std::string last = run + "/checkpoints/step-0000000002";
  const json shown = json::parse(longspan({"inspect", last, "--verify", "--json"}).out);
  const json reader = read("checkpoint", last);
  EXPECT_EQ(reader["step"], shown["step"]);
  EXPECT_EQ(reader["checkpoint_uuid"], shown["uuid"]);
  EXPECT_EQ(reader["config"], shown["config"]);
  int compared = 0;
  for (const json& tensor : shown["tensors"]) {
    const json& other = reader["tensors"][tensor["name"].get<std::string>()];
    EXPECT_EQ(other["shape"], tensor["shape"]);
    EXPECT_EQ(other["blocks"], tensor["blocks"]);
    if (!tensor.contains("statistics")) continue;
    EXPECT_NEAR(other["norm"].get<double>(), tensor["statistics"]["norm"].get<double>(), 1e-9);
    ++compared;
  }
  EXPECT_GT(compared, 5);
}

TEST(GoldenFormat, AnotherVersionIsRefusedNamingBoth) {
  const testing_support::TemporaryDirectory folder;
  fs::copy(kDataset, folder.file("dataset.h5"));
  fs::copy(kCheckpoint, folder.file("step-0000000004"), fs::copy_options::recursive);
  const std::string index = folder.file("step-0000000004/index.h5");
  for (const std::string& path : {folder.file("dataset.h5"), index}) {
    fs::permissions(path, fs::perms::owner_write, fs::perm_options::add);
    const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    ASSERT_GE(file, 0);
    const hid_t version = H5Aopen(file, "format_version", H5P_DEFAULT);
    const std::int64_t two = 2;
    EXPECT_GE(H5Awrite(version, H5T_NATIVE_INT64, &two), 0);
    H5Aclose(version);
    H5Fclose(file);
    const auto r = longspan({"inspect", path});
    EXPECT_EQ(r.status, 3) << r.out;
    EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
    EXPECT_TRUE(io::contains(r.err, "format version 2, this program reads version 1")) << r.err;
  }
}

}  // namespace
}  // namespace longspan
