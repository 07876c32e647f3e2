// Types and shapes, and the rows of a tensor that equal replicas share.
#include "parallel/array.hpp"

#include <gtest/gtest.h>

#include <map>

namespace longspan {
namespace {

TEST(DType, SizesAndNames) {
  const std::map<DType, std::pair<std::size_t, std::string_view>> expected = {
      {DType::kF32, {4, "f32"}}, {DType::kBF16, {2, "bf16"}}, {DType::kU8, {1, "u8"}},
      {DType::kU16, {2, "u16"}}, {DType::kU32, {4, "u32"}},   {DType::kI32, {4, "i32"}},
      {DType::kI64, {8, "i64"}}, {DType::kU64, {8, "u64"}},   {DType::kF64, {8, "f64"}}};
  for (const auto& [dtype, size_and_name] : expected) {
    EXPECT_EQ(size_of(dtype), size_and_name.first) << size_and_name.second;
    EXPECT_EQ(name_of(dtype), size_and_name.second);
  }
}

TEST(Shape, CountAndText) {
  EXPECT_EQ(element_count({50257, 768}), 50257 * 768);
  EXPECT_EQ(element_count({1 << 20, 1 << 20}), std::int64_t{1} << 40);
  EXPECT_EQ(element_count({}), 1);
  EXPECT_EQ(element_count({3, 0, 5}), 0);
  EXPECT_EQ(to_string(Shape{50257, 768}), "[50257, 768]");
  EXPECT_EQ(to_string(Shape{7}), "[7]");
  EXPECT_EQ(to_string(Shape{}), "[]");
}

ShardedArray array_of(Shape shape, Shape offset, Shape global_shape, DType dtype, void* data) {
  return {.name = "model/weight",
          .dtype = dtype,
          .global_shape = global_shape,
          .offset = offset,
          .shape = shape,
          .data = data};
}

TEST(RowsOfReplica, CoverTheBlockExactlyOnce) {
  std::vector<float> data(17 * 6);
  for (const std::int64_t rows : {0, 1, 2, 5, 16, 17})
    for (int count = 1; count <= 8; ++count) {
      const ShardedArray whole =
          array_of({rows, 2, 3}, {100, 4, 0}, {1000, 8, 3}, DType::kF32, data.data());
      std::int64_t next = 100, smallest = rows, largest = 0;
      for (int index = 0; index < count; ++index) {
        const ShardedArray part = rows_of_replica(whole, index, count);
        EXPECT_EQ(part.offset, (Shape{next, 4, 0}));
        EXPECT_EQ(part.shape, (Shape{part.shape[0], 2, 3}));
        EXPECT_EQ(part.global_shape, whole.global_shape);
        EXPECT_EQ(part.name, whole.name);
        EXPECT_EQ(part.data, data.data() + (next - 100) * 6);
        smallest = std::min(smallest, part.shape[0]);
        largest = std::max(largest, part.shape[0]);
        next += part.shape[0];
      }
      EXPECT_EQ(next, 100 + rows) << rows << " rows, " << count << " replicas";
      EXPECT_LE(largest - smallest, 1) << rows << " rows, " << count << " replicas";
    }
}

TEST(RowsOfReplica, CountBytesOfTheType) {
  std::vector<std::uint16_t> data(8 * 5);
  const ShardedArray part =
      rows_of_replica(array_of({8, 5}, {0, 0}, {8, 5}, DType::kBF16, data.data()), 1, 2);
  EXPECT_EQ(part.data, data.data() + 20);
  EXPECT_EQ(part.bytes(), 40);
}

TEST(RowsOfReplica, AScalarBelongsToTheFirst) {
  std::uint64_t value = 0;
  const ShardedArray scalar = array_of({}, {}, {}, DType::kU64, &value);
  EXPECT_EQ(rows_of_replica(scalar, 0, 3).bytes(), 8);
  EXPECT_EQ(rows_of_replica(scalar, 1, 3).bytes(), 0);
  EXPECT_EQ(rows_of_replica(scalar, 2, 3).bytes(), 0);
}

TEST(PartBegin, NeverOverflowsOnLongData) {
  const std::int64_t total = std::int64_t{1} << 61;
  EXPECT_EQ(part_begin(total, 1024, 1024), total);
  EXPECT_EQ(part_begin(total, 512, 1024), total / 2);
}

}  // namespace
}  // namespace longspan
