/// What is behind `longspan inspect --tensor NAME[SLICE]` and `--diff`: slices, folded layers, the
/// comparison of checkpoints. The commands themselves: inspect_command_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/checkpoint_reader.hpp"
#include "launcher/checkpoint_diff.hpp"
#include "launcher/inspect_values.hpp"
#include "launcher/tensor_rows.hpp"
#include "launcher/tensor_slice.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using namespace io::testing;
using Json = nlohmann::json;

std::string slice_of(const std::string& text, const Shape& shape) {
  return to_string(parse_slice(text, "w", shape));
}

TEST(TensorSlice, IsWhatNumPyMeans) {
  const Shape shape = {10, 20, 30};
  EXPECT_EQ(slice_of("0:4, -3:", shape), "[0:4, 17:20, 0:30]");
  EXPECT_EQ(slice_of("", shape), "[0:10, 0:20, 0:30]");
  EXPECT_EQ(slice_of("-1", shape), "[9, 0:20, 0:30]");
  EXPECT_EQ(slice_of("...,  5", shape), "[0:10, 0:20, 5]");
  EXPECT_EQ(slice_of("2, ..., :-28", shape), "[2, 0:20, 0:2]");
  EXPECT_EQ(slice_of("1,2,3", shape), "[1, 2, 3]");
  EXPECT_EQ(slice_of("8:99, -99:3:1, :", shape), "[8:10, 0:3, 0:30]") << "ranges are clipped";
  EXPECT_EQ(element_count(parse_slice("5:2", "w", shape).shape), 0);
  EXPECT_EQ(parse_slice("3, :2, -1", "w", shape).result_shape(), (Shape{2}));
  for (const auto& [slice, message] : std::vector<std::pair<std::string, std::string>>{
           {"10", "index 10 is outside of dim 0, which has 10"},
           {"0, -21", "index -21 is outside of dim 1, which has 20"},
           {"::2", "steps of 1"},
           {"0,0,0,0", "4 dims are given"},
           {"..., 1, ...", "may stand once"},
           {"a:", "'a' is no whole number"},
           {"1:2:3:4", "no range"},
           {"99999999999999999999", "no whole number"},
           {"1,,2", "'' is no whole number"}})
    EXPECT_TRUE(
        contains(error_of([&] { parse_slice(slice, "w", shape); }, ExitStatus::kUsage), message))
        << slice;
  EXPECT_EQ(parse_request("a/b[1]").slice, "1");
  EXPECT_FALSE(parse_request("a/b").slice);
  for (const char* bad : {"a[1", "a[1]b", "[1]", "a[1][2]"})
    error_of([&] { parse_request(bad); }, ExitStatus::kUsage);
}

TEST(TensorSlice, PiecesAreTheBlockInOrder) {
  for (const std::int64_t most : {1, 2, 3, 5, 7, 12, 59, 60, 1000}) {
    std::vector<std::int64_t> seen;
    for_each_piece({1, 0, 2}, {3, 4, 5}, most, [&](const Shape& offset, const Shape& shape) {
      EXPECT_LE(element_count(shape), most);
      for (std::int64_t i = 0; i < shape[0]; ++i)
        for (std::int64_t j = 0; j < shape[1]; ++j)
          for (std::int64_t k = 0; k < shape[2]; ++k)
            seen.push_back(((offset[0] - 1 + i) * 4 + offset[1] + j) * 5 + offset[2] - 2 + k);
    });
    ASSERT_EQ(seen.size(), 60U) << most;
    for (std::size_t i = 0; i < seen.size(); ++i)
      EXPECT_EQ(seen[i], static_cast<std::int64_t>(i)) << most;
  }
  for_each_piece({0, 0}, {4, 0}, 8, [](const Shape&, const Shape&) { FAIL() << "empty"; });
}

TEST(TensorRows, FoldsAlikeLayersAlone) {
  const std::vector<std::pair<std::string, std::string>> tensors = {
      {"wte", "a"},           {"blocks.0.up", "a"}, {"blocks.0.down", "b"}, {"blocks.1.up", "a"},
      {"blocks.1.down", "c"}, {"blocks.2.up", "a"}, {"blocks.4.up", "a"},   {"v1.weight", "a"}};
  std::vector<std::string> names;
  for (const auto& row : rows_of(tensors, false)) names.push_back(row.name);
  EXPECT_EQ(names, (std::vector<std::string>{"wte", "blocks.0-2,4.up", "blocks.0.down",
                                             "blocks.1.down", "v1.weight"}));
  EXPECT_EQ(rows_of(tensors, false)[1].members, (std::vector<std::size_t>{1, 3, 5, 6}));
  EXPECT_EQ(rows_of(tensors, true).size(), tensors.size());
}

TEST(ValueText, ReadsBackToTheSameBits) {
  const float third = 1.0F / 3, huge = std::numeric_limits<float>::max(), nan = NAN;
  EXPECT_EQ(std::stof(value_text(DType::kF32, &third)), third);
  EXPECT_EQ(std::stof(value_text(DType::kF32, &huge)), huge);
  EXPECT_EQ(value_text(DType::kF32, &nan), "nan");
  const double minus = -INFINITY;
  EXPECT_EQ(value_text(DType::kF64, &minus), "-inf");
  const std::uint64_t large = 0xffffffffffffffff;
  EXPECT_EQ(value_text(DType::kU64, &large), "18446744073709551615");
  const std::uint16_t half = 0x3f00;  // bf16
  EXPECT_EQ(value_text(DType::kBF16, &half), "0.5");
}

class InspectDiff : public ::testing::Test {
 protected:
  /// Tensors under `name`; on how many shards is up to the row blocks each is cut into.
  std::string write(const std::string& name, std::vector<TestTensor>& tensors,
                    std::int64_t step = 1) {
    return io::write_checkpoint(own_.file(name), arrays_of(tensors), test_facts(step),
                                Communicator::self());
  }
  CheckpointDiff diff(const std::string& a, const std::string& b, bool read_all = false) {
    return compare_checkpoints(a, b, read_all);
  }
  testing_support::TemporaryDirectory own_;
};

const TensorDiff& of(const CheckpointDiff& diff, const std::string& name) {
  for (const auto& tensor : diff.tensors)
    if (tensor.name == name) return tensor;
  throw Error(name + " is not in the comparison");
}

/// Bytes that this process has asked the system for.
std::int64_t bytes_read() {
  std::ifstream io("/proc/self/io");
  for (std::string key; io >> key;) {
    std::int64_t value = 0;
    io >> value;
    if (key == "rchar:") return value;
  }
  return -1;
}

TEST_F(InspectDiff, ASliceReadsItsRowsAlone) {
  std::vector<TestTensor> tensors;
  tensors.emplace_back("model/w", DType::kF32, Shape{4096, 1024}, 0);  // 16.8 MB
  const std::string path = write("a", tensors);
  std::FILE* const sink = std::fopen(own_.file("out").c_str(), "w");
  ASSERT_NE(sink, nullptr);
  io::CheckpointReader reader(path);
  const io::TensorEntry& tensor = reader.tensors()[0];
  const std::int64_t before = bytes_read();
  if (before < 0) GTEST_SKIP() << "no /proc/self/io on this system";
  print_values(reader, tensor, parse_slice("100:110, -3:", "w", tensor.global_shape), 80, sink);
  EXPECT_LT(bytes_read() - before, 200'000);
  print_values(reader, tensor, parse_slice("::1, 5", "w", tensor.global_shape), 80, sink);
  EXPECT_GT(bytes_read() - before, 16'000'000) << "a column runs through all rows";
  std::fclose(sink);
}

TEST_F(InspectDiff, EqualAndDifferentValues) {
  auto tensors = test_tensors(), others = test_tensors();
  const std::string a = write("a", tensors), same = write("same", others);
  CheckpointDiff result = diff(a, same);
  EXPECT_TRUE(result.equal());
  EXPECT_EQ(result.unread, 6);
  result = diff(a, same, true);
  EXPECT_TRUE(result.equal());
  EXPECT_EQ(result.unread, 0);

  auto* embedding = reinterpret_cast<float*>(others[0].local.data());
  embedding[40 * 7 + 3] += 0.25F;
  embedding[40 * 8 + 39] -= 2.0F;
  embedding[0] = NAN;
  others[4].local[8 * 3] ^= 1;  // u64
  const std::string b = write("b", others);
  result = diff(a, b);
  EXPECT_FALSE(result.equal());
  const TensorDiff& t = of(result, "model/embedding.weight");
  EXPECT_EQ(t.kind, TensorDiff::Kind::kValues);
  EXPECT_EQ(t.differing, 3);
  EXPECT_EQ(t.not_finite, 1);
  EXPECT_EQ(t.largest, 2.0);
  EXPECT_EQ(t.largest_at, (Shape{8, 39}));
  double squares = 0;
  for (int i = 0; i < 61 * 40; ++i) squares += std::pow((3 * i + 1) * 0.5, 2);
  EXPECT_NEAR(t.relative_l2(), std::sqrt((2.0 * 2.0 + 0.25 * 0.25) / squares), 1e-12);
  EXPECT_EQ(of(result, "rng/state").differing, 1);
  EXPECT_EQ(of(result, "model/norm.weight").kind, TensorDiff::Kind::kEqual);
  const std::string text = diff_text(result, false, Style());
  EXPECT_TRUE(contains(text, "model/embedding.weight  [61, 40] f32  values")) << text;
  EXPECT_TRUE(contains(text, "[8, 39]")) << text;
  EXPECT_TRUE(contains(text, "different: 6 tensors: 4 equal, 2 of other values (4 by their hashes"))
      << text;
  EXPECT_FALSE(contains(text, "model/norm.weight")) << "equal ones are counted\n" << text;
  EXPECT_TRUE(contains(diff_text(result, true, Style()), "model/norm.weight"));
}

/// The same tensors, cut into other blocks: rows of the first, columns of the fourth.
TEST_F(InspectDiff, OtherLayoutsAreCompared) {
  auto tensors = test_tensors();
  std::vector<TestTensor> cut;
  cut.reserve(2 * tensors.size());
  for (const TestTensor& tensor : tensors)
    for (const bool second : {false, true}) {
      cut.push_back(tensor);
      const std::size_t dim = tensor.name == "optim/half" ? 1 : 0;
      Shape offset(tensor.global_shape.size(), 0), shape = tensor.global_shape;
      const std::int64_t half = shape[dim] / 3;
      offset[dim] = second ? half : 0;
      shape[dim] = second ? shape[dim] - half : half;
      cut.back().take(offset, shape);
    }
  const std::string a = write("a", tensors), b = write("b", cut);
  for (const auto& [x, y] : {std::pair(a, b), std::pair(b, a)}) {
    const CheckpointDiff result = diff(x, y);
    EXPECT_TRUE(result.equal()) << diff_text(result, true, Style());
    EXPECT_EQ(result.unread, 1) << "the tensor of one row is not cut";
  }
  auto* half = reinterpret_cast<std::uint16_t*>(cut[7].local.data());  // columns 2 to 6 of 7
  half[(5 * 5 + 4) * 3 + 1] += 1;
  const CheckpointDiff result = diff(a, write("c", cut));
  EXPECT_EQ(of(result, "optim/half").differing, 1);
  EXPECT_EQ(of(result, "optim/half").largest_at, (Shape{5, 6, 1}));
  EXPECT_FALSE(result.equal());
}

TEST_F(InspectDiff, LargeIntegersAreComparedExactly) {
  std::vector<TestTensor> tensors, others;
  tensors.emplace_back("rng/state", DType::kU64, Shape{4}, 0);
  others = tensors;
  const std::uint64_t x[] = {std::uint64_t{1} << 60, 5, 6, 7}, y[] = {x[0] + 1, 5, 6, 7};
  tensors[0].array.data = const_cast<std::uint64_t*>(x);
  others[0].array.data = const_cast<std::uint64_t*>(y);
  EXPECT_EQ(of(diff(write("a", tensors), write("b", others)), "rng/state").differing, 1);
}

TEST_F(InspectDiff, OtherShapesTypesAndTensors) {
  std::vector<TestTensor> tensors, others;
  tensors.emplace_back("model/shape", DType::kF32, Shape{4, 3}, 1);
  tensors.emplace_back("model/type", DType::kF32, Shape{4}, 1);
  tensors.emplace_back("model/gone", DType::kF32, Shape{4}, 1);
  others.emplace_back("model/new", DType::kF32, Shape{4}, 1);
  others.emplace_back("model/shape", DType::kF32, Shape{3, 4}, 1);
  others.emplace_back("model/type", DType::kF64, Shape{4}, 1);
  auto* wide = reinterpret_cast<double*>(others[2].local.data());
  for (int i = 0; i < 4; ++i) wide[i] = (3 * i + 1) * 0.5;
  const CheckpointDiff result = diff(write("a", tensors), write("b", others, 2));
  using Kind = TensorDiff::Kind;
  EXPECT_EQ(of(result, "model/shape").kind, Kind::kShape);
  EXPECT_EQ(of(result, "model/type").kind, Kind::kType) << "the values are equal";
  EXPECT_EQ(of(result, "model/gone").kind, Kind::kOnlyFirst);
  EXPECT_EQ(of(result, "model/new").kind, Kind::kOnlySecond);
  EXPECT_EQ(result.place.at(0).name, "step");
  const Json json = Json::parse(diff_json(result).dump());
  EXPECT_EQ(json["equal"], false);
  EXPECT_EQ(json["counts"]["only in first"], 1);
  const std::string text = diff_text(result, false, Style());
  EXPECT_TRUE(contains(text, "[4, 3] f32 | [3, 4] f32")) << text;
}

}  // namespace
}  // namespace longspan::launcher
