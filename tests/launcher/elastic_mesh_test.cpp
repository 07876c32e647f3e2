/// mesh.elastic: the mesh for every number of ranks, as a function.
#include "launcher/elastic_mesh.hpp"

#include <gtest/gtest.h>

#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

RunConfig config_of(MeshConfig mesh, std::int64_t global_batch = 24) {
  RunConfig c;
  c.model.heads = 8, c.model.kv_heads = 4, c.model.width = 64;
  c.train.global_batch = global_batch;
  c.data.sequence_length = 64;
  c.mesh = mesh;
  c.mesh.elastic = true;
  resolve(c, 256);
  return c;
}

std::string chosen(const RunConfig& c, int ranks) {
  const MeshShape s = choose_mesh(c, ranks).shape;
  return fmt::format("{}x{}x{}", s.data, s.context, s.tensor);
}

std::string error_of(const RunConfig& c, int ranks) {
  try {
    choose_mesh(c, ranks);
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    return e.what();
  }
  return "no error";
}

TEST(ElasticMesh, TheConfiguredMeshIsTakenWithoutAWordWheneverItFits) {
  for (const MeshConfig mesh : {MeshConfig{2, 2, 2}, MeshConfig{0, 2, 2}, MeshConfig{2, 0, 2}}) {
    const MeshChoice choice = choose_mesh(config_of(mesh), 8);
    EXPECT_EQ(to_string(choice.shape), "mesh.data=2 mesh.context=2 mesh.tensor=2");
    EXPECT_EQ(choice.why, "");
  }
}

TEST(ElasticMesh, TensorIsKeptThenContextThenTheRestIsData) {
  const RunConfig c = config_of({2, 2, 2});
  EXPECT_EQ(chosen(c, 4), "1x2x2");
  EXPECT_EQ(chosen(c, 6), "1x3x2");  // 2 does not divide 3: 3 is nearer to it than 1
  EXPECT_EQ(chosen(c, 2), "1x1x2");
  EXPECT_EQ(chosen(c, 12), "3x2x2");
  EXPECT_EQ(chosen(c, 16), "4x2x2");
  EXPECT_EQ(chosen(c, 3), "1x3x1");  // no even share of the heads for 3: 1 is the nearest that fits
  EXPECT_EQ(chosen(c, 1), "1x1x1");
  EXPECT_EQ(chosen(config_of({4, 1, 1}), 3), "3x1x1");
  EXPECT_EQ(chosen(config_of({2, 1, 4}), 4), "1x1x4");
  EXPECT_EQ(chosen(config_of({2, 1, 4}), 6),
            "3x1x2");  // 4 does not divide 6; of 1 and 2 the nearer
}

TEST(ElasticMesh, TheGlobalBatchIsNeverChanged) {
  // 5 data ranks cannot share 24 sequences evenly: they share each sequence.
  EXPECT_EQ(chosen(config_of({4, 1, 1}), 5), "1x5x1");
  EXPECT_EQ(chosen(config_of({0, 1, 1}), 5), "1x5x1");
  EXPECT_EQ(chosen(config_of({4, 1, 1}, 20), 5), "5x1x1");
  for (int ranks = 1; ranks <= 48; ++ranks) {
    const RunConfig c = config_of({2, 2, 2});
    const MeshShape s = choose_mesh(c, ranks).shape;
    EXPECT_EQ(s.size(), ranks);
    EXPECT_EQ(c.train.global_batch % (c.train.micro_batch * s.data), 0) << ranks;
    EXPECT_TRUE(tensor_problems(c.model, s.tensor).empty()) << ranks;
  }
}

TEST(ElasticMesh, OneLineSaysWhatWasChosenAndWhatItReplaces) {
  EXPECT_EQ(choose_mesh(config_of({2, 2, 1}), 3).why,
            "mesh.elastic: 3 ranks: mesh.data=1 instead of 2, mesh.context=3 instead of 2, "
            "mesh.tensor=1; the global batch stays 24, 24 micro-batches for each data rank");
}

TEST(ElasticMesh, WhereNothingFitsTheMeshesThatWouldAreNamed) {
  RunConfig c = config_of({1, 2, 1}, 1);
  c.data.sequence_length = 2;
  c.model.heads = c.model.kv_heads = 3;
  const std::string error = error_of(c, 5);
  EXPECT_NE(error.find("no mesh of 5 ranks fits"), std::string::npos) << error;
  EXPECT_NE(error.find("start 2 (mesh.data=1 mesh.context=2)"), std::string::npos) << error;
}

TEST(ElasticMesh, OffOtherRanksAreRefusedAsBefore) {
  RunConfig c = config_of({2, 2, 1});
  c.mesh.elastic = false;
  EXPECT_NE(error_of(c, 3).find("does not make 3 ranks"), std::string::npos);
}

TEST(ElasticMesh, ABatchThatFollowsTheRanksIsRefused) {
  RunConfig c = config_of({2, 2, 1});
  EXPECT_TRUE(problems_of(c).empty());
  c.train.global_batch = 0;
  const auto problems = problems_of(c);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_NE(problems[0].find("mesh.elastic=on with train.global-batch=0"), std::string::npos);
}

}  // namespace
}  // namespace longspan::launcher
