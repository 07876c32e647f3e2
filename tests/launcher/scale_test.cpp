// label: slow
// timeout: 300
/// longspan scale as a user runs it: a study of one and two ranks, ended, killed and continued; a
/// point that fails; Slurm jobs with a sbatch and a squeue of our own.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <thread>

#include "launcher/study_files.hpp"
#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing_support::ProcessResult;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class Scale : public testing::Test {
 protected:
  void SetUp() override {
    // No calibration of this machine's user: the same on every machine.
    setenv("XDG_CONFIG_HOME", folder_.path().c_str(), 1);
    std::ofstream(folder_.file("text")) << testing_support::sample_text(30000);
    const auto prepared = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", folder_.file("d.h5"), folder_.file("text")});
    ASSERT_EQ(prepared.status, 0) << prepared.err;
  }
  /// The words of a small study in `output`.
  std::vector<std::string> words(const std::string& output, std::vector<std::string> more = {}) {
    std::vector<std::string> all = {testing_support::longspan_path(),
                                    "scale",
                                    "--config",
                                    LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                    "--data.path",
                                    folder_.file("d.h5"),
                                    "--data.sequence-length",
                                    "64",
                                    "--steps",
                                    "4",
                                    "--warmup",
                                    "1",
                                    "--run.threads",
                                    "1",
                                    "--output",
                                    output};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  ProcessResult scale(const std::string& output, std::vector<std::string> more = {}) {
    return testing_support::run_process(words(output, std::move(more)));
  }
  ProcessResult go_on(const std::string& output, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"scale", "--output", output});
    return testing_support::longspan(more);
  }
  /// Names and contents of the results there are.
  static std::map<std::string, std::string> results(const std::string& output) {
    std::map<std::string, std::string> all;
    std::error_code none;
    for (const auto& entry : fs::recursive_directory_iterator(output + "/runs", none))
      if (entry.path().extension() == ".json" &&
          fs::is_directory(fs::path(entry.path()).replace_extension("")))
        all[entry.path()] =
            read(entry.path()) +
            std::to_string(fs::last_write_time(entry.path()).time_since_epoch().count());
    return all;
  }
  testing_support::TemporaryDirectory folder_;
};

TEST_F(Scale, TwoMeshesOfOneAndTwoRanks) {
  // A name that a shell, a CSV file and a page would all like to read differently.
  const std::string output = folder_.file("a 'b\" $(touch x); <i>&,\xc3\xbc");
  const auto first = scale(output, {"--ranks", "1,2", "--mesh", "Nx1x1,1xNx1", "--scheme", "ring"});
  ASSERT_EQ(first.status, 0) << first.out << first.err;
  EXPECT_NE(first.out.find("3 of 3: 2-ranks-1x2x1-ring-64-b4: "), std::string::npos) << first.out;
  EXPECT_NE(first.out.find("\n1xNx1 ring 64\n"), std::string::npos) << first.out;
  EXPECT_EQ(results(output).size(), 3u);
  EXPECT_FALSE(fs::exists("x"));
  // Weights of four steps are nobody's.
  EXPECT_FALSE(fs::exists(output + "/runs/1-rank-1x1x1-64-b4/1/checkpoints"));

  // Nothing is left to do, and the folder says all that the command line said.
  const auto before = results(output);
  const auto again = go_on(output, {"--json"});
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(results(output), before);
  const json report = json::parse(again.out);
  ASSERT_EQ(report["points"].size(), 3u);
  for (const json& point : report["points"]) {
    EXPECT_EQ(point["state"], "done");
    EXPECT_GT(point["seconds_per_step"], 0.0);
    EXPECT_EQ(point["tokens_per_second"], 256 / point["seconds_per_step"].get<double>());
    EXPECT_EQ(point["threads_per_rank"], 1);
    const double predicted = point["memory_predicted_bytes"],
                 allocated = point["memory_allocated_bytes"];
    EXPECT_NEAR(predicted / allocated, 1, 0.05);
    for (const char* axis : {"context", "gradient"})
      EXPECT_EQ(point[std::string(axis) + "_sent_bytes"],
                point[std::string(axis) + "_formula_bytes"])
          << point["point"];
    EXPECT_GT(point["attention_seconds"], 0.0);
    EXPECT_FALSE(point["host"].get<std::string>().empty());
    EXPECT_FALSE(point["processor"].get<std::string>().empty());
  }
  EXPECT_EQ(report["points"][0]["context_sent_bytes"], 0);
  EXPECT_GT(report["points"][2]["context_sent_bytes"], 0);
  EXPECT_GT(report["points"][2]["context_exposed_seconds"], 0);
  EXPECT_EQ(report["points"][2]["baseline"], "1-rank-1x1x1-64-b4");
  const std::string html = read(output + "/report.html");
  EXPECT_NE(html.find("2-ranks-1x2x1-ring-64-b4"), std::string::npos);
  EXPECT_EQ(html.find("<i>&,"), std::string::npos);

  // The tables, with the tools that people have for them.
  const std::string python = LONGSPAN_SOURCE_DIR "/.venv-tests/bin/python";
  if (testing_support::run_process({python, "-c", "import h5py"}).status != 0)
    GTEST_SKIP() << "no h5py: tests/support/python_environment.sh";
  const auto compared = testing_support::run_process(
      {python, "-c",
       "import csv, h5py, math, sys\n"
       "rows = list(csv.DictReader(open(sys.argv[1] + '/results.csv', newline='')))\n"
       "f = h5py.File(sys.argv[1] + '/results.h5')\n"
       "assert set(f) == set(rows[0]) and len(rows) == 3\n"
       "for name in f:\n"
       "  for value, row in zip(f[name][:], rows):\n"
       "    if f[name].dtype.kind == 'S': assert value.decode() == row[name], name\n"
       "    elif row[name] == '': assert math.isnan(value), name\n"
       "    else: assert value == float(row[name]), name\n"
       "print(sum(f['ranks'][:]), f['seconds_per_step'].attrs['unit'].decode())\n",
       output});
  EXPECT_EQ(compared.status, 0) << compared.err;
  EXPECT_EQ(compared.out, "5 s\n");

  // Another study does not go into this folder, and the difference is named.
  const auto other = scale(output, {"--ranks", "1", "--mesh", "Nx1x1"});
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.err.find("ranks [1] instead of [1,2]"), std::string::npos) << other.err;
  EXPECT_EQ(testing_support::count_lines(other.err), 1) << other.err;
  EXPECT_EQ(results(output), before);
}

TEST_F(Scale, KilledAndEndedItGoesOnWhereItWas) {
  const std::string output = folder_.file("s");
  const std::vector<std::string> study = {"--ranks",  "1,2", "--mesh",  "Nx1x1",
                                          "--repeat", "2",   "--steps", "40"};
  auto killed = testing_support::run_process(words(output, study), "1 of 4: ", SIGKILL);
  EXPECT_EQ(killed.status, 128 + SIGKILL);
  const auto one = results(output);
  EXPECT_EQ(one.size(), 1u);
  EXPECT_TRUE(fs::exists(output + "/results.csv"));

  // The run under way has no result: it begins anew, even if its ranks are only just leaving.
  auto ended = testing_support::run_process(words(output, study), "2 of 4: ", SIGINT);
  EXPECT_EQ(ended.status, 75) << ended.out << ended.err;
  EXPECT_EQ(ended.out.find("1 of 4: "), std::string::npos) << ended.out;
  EXPECT_NE(ended.out.find("not complete: longspan scale --output "), std::string::npos);
  const auto two = results(output);
  EXPECT_EQ(two.size(), 2u);

  const auto rest = go_on(output);
  EXPECT_EQ(rest.status, 0) << rest.out << rest.err;
  EXPECT_NE(rest.out.find("4 of 4: 2-ranks-2x1x1-64-b4, run 2: "), std::string::npos) << rest.out;
  const auto all = results(output);
  EXPECT_EQ(all.size(), 4u);
  for (const auto& [path, text] : two) EXPECT_EQ(all.at(path), text) << path;
  for (const auto& [path, text] : one) EXPECT_EQ(all.at(path), text) << path;
  EXPECT_TRUE(testing_support::processes_of("launch", output + "/config.ini").empty());
  EXPECT_TRUE(testing_support::processes_of("train", output + "/config.ini").empty());
}

TEST_F(Scale, PointThatFailsIsKeptAndTheRestGoesOn) {
  const std::string output = folder_.file("s");
  // The dataset has less than one such sequence.
  const std::vector<std::string> study = {"--ranks", "1", "--mesh", "Nx1x1", "--length", "64k,64"};
  const auto first = scale(output, study);
  EXPECT_EQ(first.status, 1) << first.out << first.err;
  EXPECT_NE(first.out.find("1 of 2: 1-rank-1x1x1-65536-b4: failed: "), std::string::npos);
  EXPECT_NE(first.out.find("2 of 2: 1-rank-1x1x1-64-b4: "), std::string::npos) << first.out;
  const json report = json::parse(go_on(output, {"--json"}).out);
  EXPECT_EQ(report["points"][0]["state"], "failed");
  EXPECT_NE(report["points"][0]["error"].get<std::string>().find("65536"), std::string::npos)
      << report["points"][0]["error"];
  EXPECT_TRUE(report["points"][0]["seconds_per_step"].is_null());
  EXPECT_EQ(report["points"][1]["state"], "done");
  const auto before = results(output);
  EXPECT_EQ(go_on(output, {"--retry"}).status, 1);
  int same = 0;
  for (const auto& [path, text] : results(output)) same += before.at(path) == text;
  EXPECT_EQ(same, 1) << "only what failed runs again";
}

TEST_F(Scale, WrongUseIsOneLineAndLeavesNothing) {
  const std::string output = folder_.file("s");
  struct Case {
    std::vector<std::string> more;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{{{"--ranks", "1,x"}, "'x' is no number"},
                                         {{"--ranks", "1,,2"}, "must be a list"},
                                         {{"--mesh", "2x"}, "DATAxCONTEXTxTENSOR"},
                                         {{"--scheme", "rings"}, "attention.scheme=rings"},
                                         {{"--length", "0"}, "data.sequence-length=0"},
                                         {{"--mode", "medium"}, "strong or weak"},
                                         {{"--grow", "length"}, "--grow is for --mode weak"},
                                         {{"--steps", "1"}, "no step would count"},
                                         {{"--repeat", "0"}, "between 1 and 1000"},
                                         {{"--submit"}, "how many ranks"},
                                         {{"--data.path", "/nowhere.h5"}, "/nowhere.h5"}}) {
    const auto r = scale(output, c.more);
    EXPECT_NE(r.status, 0) << c.says;
    EXPECT_NE(r.err.find(c.says), std::string::npos) << c.says << ": " << r.err;
    EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
    EXPECT_FALSE(fs::exists(output));
  }
  const auto dry = scale(output, {"--ranks", "1,3", "--mesh", "Nx1x1", "--dry-run"});
  EXPECT_EQ(dry.status, 0) << dry.err;
  EXPECT_NE(dry.out.find("1-rank-1x1x1-64-b4"), std::string::npos) << dry.out;
  EXPECT_NE(dry.out.find("left out: 3-ranks-3x1x1-64-b4: train.global-batch=4"), std::string::npos)
      << dry.out;
  EXPECT_FALSE(fs::exists(output));
  // Somebody's folder is not taken for a study.
  fs::create_directories(output);
  std::ofstream(output + "/thesis.tex") << "x";
  const auto foreign = scale(output);
  EXPECT_EQ(foreign.status, 2);
  EXPECT_NE(foreign.err.find("it has thesis.tex and no study.json"), std::string::npos);
  EXPECT_EQ(go_on(folder_.file("none")).status, 2);
  // A damaged record is no reason to begin anew in the same folder.
  fs::remove(output + "/thesis.tex");
  std::ofstream(output + "/study.json") << "{\"version\": 1, \"requ";
  std::ofstream(output + "/config.ini") << "";
  EXPECT_EQ(go_on(output).status, 3);
}

TEST_F(Scale, SubmittedPointsAreCollectedWhenTheirJobsAreOver) {
  const std::string output = folder_.file("s"), bin = folder_.file("bin");
  fs::create_directories(bin);
  const auto program = [&](const std::string& name, const std::string& text) {
    std::ofstream(bin + "/" + name) << "#!/bin/sh\n" << text;
    fs::permissions(bin + "/" + name, fs::perms::owner_all);
  };
  // Each job gets the next number and is RUNNING for as long as its file says so.
  program("sbatch", "n=$(ls '" + bin + "' | grep -c job); n=$((n + 1)); cat > '" + bin +
                        "'/job$n; echo RUNNING > '" + bin + "'/state$n; echo $n\n");
  program("squeue", "for f in '" + bin +
                        "'/state*; do s=$(cat $f); [ \"$s\" = gone ] || echo "
                        "\"${f##*state}|$s|1:00|None\"; done\n");
  program("scontrol", "exit 1\n");
  const std::string path = bin + ":" + getenv("PATH");
  const auto submit = [&](std::vector<std::string> command) {
    command.insert(command.begin(), {"env", "PATH=" + path});
    return testing_support::run_process(command);
  };
  const std::vector<std::string> study =
      words(output, {"--ranks", "1,2", "--mesh", "Nx1x1", "--submit", "--slurm.partition", "p q",
                     "--slurm.ranks-per-node", "1"});
  const auto first = submit(study);
  EXPECT_EQ(first.status, 75) << first.out << first.err;
  EXPECT_NE(first.out.find("submitted job 2: 2-ranks-2x1x1-64-b4"), std::string::npos) << first.out;
  const std::string script = read(bin + "/job2");
  EXPECT_NE(script.find("#SBATCH --nodes=2"), std::string::npos) << script;
  EXPECT_NE(script.find("p q"), std::string::npos) << script;
  EXPECT_NE(script.find("--mesh.data 2"), std::string::npos) << script;
  EXPECT_NE(script.find("--train.steps 4"), std::string::npos) << script;

  // They still run: nothing is submitted twice.
  const auto again = submit(study);
  EXPECT_EQ(again.status, 75) << again.err;
  EXPECT_FALSE(fs::exists(bin + "/job3"));
  EXPECT_NE(again.out.find("running"), std::string::npos) << again.out;

  // The first does what its script would, the second is lost.
  const std::string run = output + "/runs/1-rank-1x1x1-64-b4/1";
  const auto ran = testing_support::run_process(
      {"env", "SLURM_JOB_ID=1", testing_support::longspan_path(), "train", "--config",
       output + "/config.ini", "--run.directory", run, "--mesh.data", "1", "--data.sequence-length",
       "64", "--train.global-batch", "4"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  for (const char* job : {"/state1", "/state2"}) std::ofstream(bin + job) << "gone\n";
  const auto over =
      submit({testing_support::longspan_path(), "scale", "--output", output, "--json"});
  EXPECT_EQ(over.status, 1) << over.out << over.err;
  const json report = json::parse(over.out);
  EXPECT_EQ(report["points"][0]["state"], "done");
  EXPECT_GT(report["points"][0]["seconds_per_step"], 0);
  EXPECT_EQ(report["points"][1]["state"], "failed");
  EXPECT_NE(report["points"][1]["error"].get<std::string>().find("not in the queue"),
            std::string::npos);
  EXPECT_EQ(report["points"][1]["nodes"], 2);
  EXPECT_FALSE(fs::exists(bin + "/job3"));

  const auto retry =
      submit({testing_support::longspan_path(), "scale", "--output", output, "--retry"});
  EXPECT_EQ(retry.status, 75) << retry.err;
  EXPECT_TRUE(fs::exists(bin + "/job3"));
}

}  // namespace
}  // namespace longspan
