/// Scaling studies without running anything: which points there are and why others are not, what
/// strong and weak mean, medians and efficiencies, and the tables.
#include "launcher/study.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/hdf5.hpp"
#include "launcher/study_files.hpp"
#include "launcher/study_page.hpp"
#include "launcher/study_table.hpp"
#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using Scheme = model::AttentionSchemeKind;

StudySpec small_spec() {
  StudySpec spec;
  spec.config.model.layers = 2, spec.config.model.width = 64, spec.config.model.heads = 4;
  spec.config.model.vocabulary = 256;
  spec.config.data.path = "/data/d.h5";
  spec.config.train.global_batch = 8;
  spec.ranks = {1, 2, 4};
  spec.meshes = {parse_mesh("Nx1x1"), parse_mesh("1xNx1")};
  spec.schemes = {Scheme::kRing};
  spec.lengths = {128};
  return spec;
}

std::vector<std::string> names(const Study& study) {
  std::vector<std::string> all;
  for (const StudyPoint& point : study.points) all.push_back(point.name);
  return all;
}

std::string why(const Study& study, const std::string& name) {
  for (const LeftOut& left : study.left_out)
    if (left.name == name) return left.why;
  return "not left out";
}

using Names = std::vector<std::string>;

TEST(Study, PointsAreMeshesTimesRanksAndOneRankServesAll) {
  StudySpec spec = small_spec();
  spec.schemes = {Scheme::kRing, Scheme::kUlysses};
  const Study study = plan_study(spec);
  EXPECT_EQ(names(study),
            (Names{"1-rank-1x1x1-128-b8", "2-ranks-2x1x1-128-b8", "4-ranks-4x1x1-128-b8",
                   "2-ranks-1x2x1-ring-128-b8", "4-ranks-1x4x1-ring-128-b8",
                   "2-ranks-1x2x1-ulysses-128-b8", "4-ranks-1x4x1-ulysses-128-b8"}));
  EXPECT_EQ(study.series, (Names{"Nx1x1 128", "1xNx1 ring 128", "1xNx1 ulysses 128"}));
  EXPECT_EQ(study.points[0].series, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(study.points[1].series, std::vector<int>{0});
  EXPECT_EQ(study.points[6].series, std::vector<int>{2});
  EXPECT_TRUE(study.left_out.empty());
}

TEST(Study, MeshesWithoutAnNHaveTheirOwnRanksAndAreOneSeries) {
  StudySpec spec = small_spec();
  spec.ranks = {1, 2, 8};
  spec.meshes = {parse_mesh("1x1x1"), parse_mesh("2x1x1"), parse_mesh("1x1x2"),
                 parse_mesh("2x2x1")};
  const Study study = plan_study(spec);
  EXPECT_EQ(names(study),
            (Names{"1-rank-1x1x1-128-b8", "2-ranks-2x1x1-128-b8", "2-ranks-1x1x2-128-b8"}));
  EXPECT_EQ(study.series.size(), 1u);
  EXPECT_EQ(why(study, "2x2x1"), "it has 4 ranks, which --ranks 1,2,8 does not name");
  EXPECT_NE(why(study, "8 ranks").find("no mesh has so many"), std::string::npos);
}

TEST(Study, WhatCannotExistIsLeftOutWithTheReason) {
  StudySpec spec = small_spec();
  spec.ranks = {2, 3, 16};
  spec.meshes = {parse_mesh("Nx1x1"), parse_mesh("1x1xN"), parse_mesh("Nx1x2"),
                 parse_mesh("1xNx1")};
  spec.schemes = {Scheme::kHybrid};
  spec.lengths = {8};
  const Study study = plan_study(spec);
  EXPECT_NE(why(study, "3-ranks-3x1x1-8-b8").find("train.global-batch=8 is not a multiple"),
            std::string::npos);
  EXPECT_NE(why(study, "3-ranks-1x1x3-8-b8").find("model.heads=4 cannot be shared evenly"),
            std::string::npos);
  EXPECT_EQ(why(study, "Nx1x2 on 3 ranks"), "3 ranks are not a multiple of 2");
  EXPECT_NE(why(study, "2-ranks-1x2x1-hybrid-8-b8").find("attention.scheme=hybrid would be"),
            std::string::npos);
  EXPECT_NE(why(study, "16-ranks-1x16x1-hybrid-8-b8").find("mesh.context=16 ranks cannot share"),
            std::string::npos);
  for (const LeftOut& left : study.left_out)
    EXPECT_EQ(left.why.find('\n'), std::string::npos) << left.why;
  EXPECT_EQ(names(study),
            (Names{"2-ranks-2x1x1-8-b8", "2-ranks-1x1x2-8-b8", "16-ranks-8x1x2-8-b8"}));
}

TEST(Study, BudgetAndNodesLeaveOutToo) {
  StudySpec spec = small_spec();
  spec.meshes = {parse_mesh("1xNx1")};
  spec.lengths = {4096};
  spec.config.memory.keep = model::Keep::kAll;
  spec.config.memory.budget = 24 << 20;
  const Study study = plan_study(spec);
  EXPECT_NE(why(study, "1-rank-1x1x1-4096-b8").find("memory.budget"), std::string::npos);
  EXPECT_EQ(names(study), (Names{"2-ranks-1x2x1-ring-4096-b8", "4-ranks-1x4x1-ring-4096-b8"}));
  EXPECT_EQ(study.points[0].series, std::vector<int>{0});

  spec = small_spec();
  spec.ranks = {2, 4, 6, 8};
  spec.submit = true, spec.ranks_per_node = 4;
  const Study nodes = plan_study(spec);
  EXPECT_EQ(why(nodes, "6-ranks-6x1x1-128-b8"),
            "6 ranks are not a multiple of slurm.ranks-per-node=4");
  EXPECT_EQ(nodes.points[0].nodes, 1);
  EXPECT_EQ(nodes.points[1].nodes, 1);
  EXPECT_EQ(nodes.points[2].nodes, 2);
}

TEST(Study, NoPointAtAllIsAWrongUse) {
  StudySpec spec = small_spec();
  spec.ranks = {3};
  spec.meshes = {parse_mesh("1x1xN")};
  try {
    plan_study(spec);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    EXPECT_NE(std::string(e.what()).find("3-ranks-1x1x3"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("model.heads=4"), std::string::npos) << e.what();
  }
}

TEST(Study, StrongIsTheSameWorkAndWeakTheSamePerRank) {
  StudySpec spec = small_spec();
  spec.meshes = {parse_mesh("1xNx1")};
  for (const StudyPoint& p : plan_study(spec).points) EXPECT_EQ(p.tokens(), 8 * 128) << p.name;
  spec.scaling = Scaling::kWeakBatch;
  for (const StudyPoint& p : plan_study(spec).points) {
    EXPECT_EQ(p.batch, 8 * p.ranks()) << p.name;
    EXPECT_EQ(p.length, 128) << p.name;
  }
  spec.scaling = Scaling::kWeakLength;
  for (const StudyPoint& p : plan_study(spec).points) {
    EXPECT_EQ(p.batch, 8) << p.name;
    EXPECT_EQ(p.length, 128 * p.ranks()) << p.name;
  }
  // A batch that nobody has set: as many sequences as every mesh can split; or one micro-batch a
  // rank.
  spec.config.train.global_batch = 0, spec.config.train.micro_batch = 2;
  spec.meshes = {parse_mesh("Nx1x1")};
  spec.ranks = {1, 2, 3};
  spec.scaling = Scaling::kStrong;
  for (const StudyPoint& p : plan_study(spec).points) EXPECT_EQ(p.batch, 12) << p.name;
  spec.scaling = Scaling::kWeakBatch;
  for (const StudyPoint& p : plan_study(spec).points) EXPECT_EQ(p.batch, 2 * p.ranks()) << p.name;
}

TEST(Study, AutoIsResolvedSoThatThePointSaysWhatRuns) {
  StudySpec spec = small_spec();
  spec.meshes = {parse_mesh("1xNx1")};
  spec.schemes = {Scheme::kAuto};
  for (const StudyPoint& p : plan_study(spec).points) EXPECT_NE(p.scheme, Scheme::kAuto) << p.name;
}

TEST(Study, MeshesAreReadAndRefused) {
  EXPECT_EQ(mesh_text(parse_mesh("2x1x4")), "2x1x4");
  EXPECT_EQ(mesh_text(parse_mesh("2xNx4")), "2xNx4");
  for (const char* bad : {"", "2", "2x1", "2x1x", "2x1x1x1", "NxNx1", "0x1x1", "-1x1x1", "2x1x1 ",
                          "2X1x1", "ax1x1", "999999999999x1x1", "1048576x1048576x1", "2xx1"})
    EXPECT_THROW(parse_mesh(bad), Error) << bad;
}

TEST(StudyResult, MedianIsTheMiddleAndSkipsWhatIsNotKnown) {
  EXPECT_EQ(median_of({3, 1, 2}), 2);
  EXPECT_EQ(median_of({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(median_of({kNotKnown, 7}), 7);
  EXPECT_TRUE(std::isnan(median_of({kNotKnown})));
}

RunResult took(double seconds) {
  RunResult result;
  result.numbers.seconds = seconds;
  result.numbers.memory_predicted = 1000;
  return result;
}

using Results = std::vector<std::vector<std::optional<RunResult>>>;

std::vector<PointResult> summary(const StudySpec& spec, const Study& study, const Results& results,
                                 Unfinished unfinished = Unfinished::kNotRun) {
  std::vector<std::vector<Unfinished>> open;
  for (const auto& runs : results) open.emplace_back(runs.size(), unfinished);
  return summarise(spec, study, results, open);
}

TEST(StudyResult, SpeedUpIsAgainstTheSmallestPointOfTheSeries) {
  StudySpec spec = small_spec();
  spec.meshes = {parse_mesh("Nx1x1")};
  spec.repeats = 3;
  const Study study = plan_study(spec);
  const auto rows = summary(spec, study,
                            {{took(8), took(9), took(7)},
                             {took(5), took(4), took(6)},
                             {took(2.5), took(2.5), took(2.5)}});
  EXPECT_EQ(rows[0].median.seconds, 8);
  EXPECT_EQ(rows[0].seconds_min, 7);
  EXPECT_EQ(rows[0].seconds_max, 9);
  EXPECT_EQ(rows[0].median.tokens_per_second, 8 * 128 / 8.0);
  EXPECT_EQ(rows[0].speedup, 1);
  EXPECT_DOUBLE_EQ(rows[1].speedup, 8.0 / 5);
  EXPECT_EQ(rows[1].ideal, 2);
  EXPECT_DOUBLE_EQ(rows[1].efficiency, 0.8);
  EXPECT_DOUBLE_EQ(rows[2].efficiency, 8 / 2.5 / 4);
  EXPECT_DOUBLE_EQ(rows[2].flop_efficiency, rows[2].efficiency);
  EXPECT_EQ(rows[2].baseline, "1-rank-1x1x1-128-b8");
  EXPECT_EQ(rows[0].median.memory_predicted, 1000);
  EXPECT_TRUE(std::isnan(rows[0].median.mfu));
}

TEST(StudyResult, WeakEfficiencyIsTheStepTimeThatStaysTheSame) {
  StudySpec spec = small_spec();
  spec.meshes = {parse_mesh("1xNx1")};
  spec.scaling = Scaling::kWeakBatch;
  Study study = plan_study(spec);
  auto rows = summary(spec, study, {{took(2)}, {took(2.5)}, {took(4)}});
  EXPECT_DOUBLE_EQ(rows[1].speedup, 1.6);
  EXPECT_DOUBLE_EQ(rows[1].efficiency, 0.8);
  EXPECT_DOUBLE_EQ(rows[2].efficiency, 0.5);
  // Tokens of a longer sequence take more FLOPs: in FLOPs the same time is more work.
  spec.scaling = Scaling::kWeakLength;
  study = plan_study(spec);
  rows = summary(spec, study, {{took(2)}, {took(2)}, {took(2)}});
  EXPECT_DOUBLE_EQ(rows[1].efficiency, 1);
  EXPECT_GT(rows[1].flop_efficiency, 1.01);
  EXPECT_GT(rows[2].flop_efficiency, rows[1].flop_efficiency);
}

TEST(StudyResult, WhatFailedIsMarkedAndIsNoBaseline) {
  StudySpec spec = small_spec();
  spec.meshes = {parse_mesh("Nx1x1")};
  spec.repeats = 2;
  const Study study = plan_study(spec);
  RunResult broken;
  broken.error = "no memory";
  const auto rows =
      summary(spec, study, {{broken, broken}, {took(4), broken}, {took(2), std::nullopt}});
  EXPECT_EQ(rows[0].state, "failed");
  EXPECT_EQ(rows[0].error, "no memory");
  EXPECT_EQ(rows[0].failed, 2);
  EXPECT_TRUE(std::isnan(rows[0].speedup));
  EXPECT_EQ(rows[1].state, "failed");
  EXPECT_EQ(rows[1].done, 1);
  EXPECT_EQ(rows[1].median.seconds, 4);
  EXPECT_EQ(rows[2].state, "incomplete");
  EXPECT_EQ(rows[2].baseline, "2-ranks-2x1x1-128-b8");
  EXPECT_DOUBLE_EQ(rows[2].speedup, 2);
  EXPECT_DOUBLE_EQ(rows[2].ideal, 2);
  const auto waiting =
      summary(spec, study, {{took(1), std::nullopt}, {}, {}}, Unfinished::kWaiting);
  EXPECT_EQ(waiting[0].state, "waiting");
}

TEST(StudyResult, ReadsBackTheSameBits) {
  RunResult result = took(0.1 + 0.2);
  result.error = "a \"quoted\"\nline", result.host = "näme", result.processor = "x";
  double value = 1.0 / 3;
  for (const NumberField& field : number_fields())
    if (std::string(field.name) != "mfu") result.numbers.*field.member = value *= 1.7;
  const auto again = read_result(to_json(result));
  ASSERT_TRUE(again);
  EXPECT_EQ(again->error, result.error);
  EXPECT_EQ(again->host, result.host);
  for (const NumberField& field : number_fields()) {
    if (std::string(field.name) == "mfu")
      EXPECT_TRUE(std::isnan(again->numbers.*field.member));
    else
      EXPECT_EQ(again->numbers.*field.member, result.numbers.*field.member) << field.name;
  }
  for (const char* bad : {"", "{", "[]", "{\"numbers\": {}}"})
    EXPECT_FALSE(read_result(bad)) << bad;
}

/// Rows and cells of RFC 4180.
std::vector<std::vector<std::string>> parse_csv(const std::string& text) {
  std::vector<std::vector<std::string>> rows(1, {""});
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string& cell = rows.back().back();
    if (quoted && text[i] == '"' && i + 1 < text.size() && text[i + 1] == '"')
      cell += text[++i];
    else if (text[i] == '"')
      quoted = !quoted;
    else if (!quoted && text[i] == ',')
      rows.back().emplace_back();
    else if (!quoted && text[i] == '\r')
      rows.push_back({""}), ++i;
    else
      cell += text[i];
  }
  rows.pop_back();
  return rows;
}

TEST(StudyTable, CsvHdf5AndJsonSayTheSame) {
  StudySpec spec = small_spec();
  spec.meshes = {parse_mesh("Nx1x1")};
  const Study study = plan_study(spec);
  RunResult broken, odd = took(1.0 / 3);
  broken.error = "a, \"b\"; <script>alert(1)</script>\n=cmd";
  odd.host = "h\xc3\xb6st, \"x\"";
  const auto rows = summary(spec, study, {{odd}, {broken}, {took(0.1)}});
  const auto csv = parse_csv(study_csv(study, rows));
  ASSERT_EQ(csv.size(), 4u);
  const testing_support::TemporaryDirectory folder;
  write_study_hdf5(folder.file("r.h5"), study, rows);
  const auto file = io::hdf5::File::open(folder.file("r.h5"));
  EXPECT_EQ(file.datasets().size(), study_columns().size());
  const auto json = nlohmann::json::parse(study_json(spec, study, rows));
  for (std::size_t c = 0; c < study_columns().size(); ++c) {
    const StudyColumn& column = study_columns()[c];
    ASSERT_EQ(csv[0][c], column.name);
    EXPECT_EQ(file.text_attribute(column.name, "unit"), column.unit);
    const auto dtype = file.info(column.name).dtype;
    std::vector<double> numbers(rows.size());
    std::vector<std::string> texts;
    std::vector<std::int64_t> wholes;
    if (!dtype)
      texts = file.read_strings(column.name);
    else if (*dtype == DType::kI64)
      wholes = file.read_i64(column.name);
    else
      file.read(column.name, DType::kF64, numbers.data());
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::string& cell = csv[r + 1].at(c);
      const auto& value = json["points"][r][column.name];
      if (!dtype) {
        EXPECT_EQ(texts[r], cell) << column.name;
        EXPECT_EQ(value, cell);
      } else if (*dtype == DType::kI64) {
        EXPECT_EQ(std::to_string(wholes[r]), cell) << column.name;
        EXPECT_EQ(value, wholes[r]);
      } else if (std::isnan(numbers[r])) {
        EXPECT_EQ(cell, "") << column.name;
        EXPECT_TRUE(value.is_null());
      } else {
        EXPECT_EQ(std::stod(cell), numbers[r]) << column.name;
        EXPECT_EQ(value, numbers[r]);
      }
    }
  }
  const std::string html = study_page("a<b>&c", spec, study, rows).html();
  EXPECT_EQ(html.find("<script>alert"), std::string::npos);
  EXPECT_EQ(html.find("a<b>&c"), std::string::npos);
  EXPECT_NE(html.find("speed-up"), std::string::npos);
}

TEST(StudyFiles, RequestReadsBackAndDifferencesAreNamed) {
  StudySpec spec = small_spec();
  spec.schemes = {Scheme::kRing, Scheme::kHybrid};
  spec.scaling = Scaling::kWeakLength, spec.repeats = 3, spec.submit = true;
  spec.ranks_per_node = 2;
  const std::string text = to_json(spec, plan_study(spec));
  const StudySpec again = parse_study(text, spec.config, "study.json");
  EXPECT_EQ(difference(spec, again), "");
  EXPECT_EQ(to_json(again, plan_study(again)), text);
  StudySpec other = spec;
  other.steps = 99;
  EXPECT_EQ(difference(other, spec), "steps 99 instead of 10");
  other = spec;
  other.config.model.layers = 3;
  EXPECT_EQ(difference(other, spec), "model.layers=3 instead of 2");
  for (const std::string& bad : {std::string("{}"), std::string(""),
                                 text.substr(0, text.size() / 2), std::string("{\"version\": 2}")})
    try {
      parse_study(bad, spec.config, "x/study.json");
      ADD_FAILURE() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.status(), ExitStatus::kDamaged);
      EXPECT_NE(std::string(e.what()).find("x/study.json"), std::string::npos) << e.what();
    }
}

}  // namespace
}  // namespace longspan::launcher
