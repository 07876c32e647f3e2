/// The HDF5 wrapper: what is written comes back, offsets are where the bytes are, and errors say
/// what a person needs.
#include "io/hdf5.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "parallel/error.hpp"
#include "tests/support/error_of.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io::hdf5 {
namespace {

using testing_support::error_of;
using testing_support::TemporaryDirectory;

template <class Work>
std::string damage_of(Work&& work) {
  return error_of(std::forward<Work>(work), ExitStatus::kDamaged);
}

void put_bytes(const std::string& path, std::uint64_t offset, const void* bytes,
               std::size_t count) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset));
  file.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
  ASSERT_TRUE(file.good());
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string small_file(const TemporaryDirectory& folder, const std::string& name = "x.h5") {
  const std::string path = folder.file(name);
  File file = File::create(path);
  const std::vector<std::uint64_t> numbers = {1, 2, 3};
  file.write("table/numbers", numbers);
  file.close();
  return path;
}

TEST(Hdf5, DatasetsAndAttributesComeBack) {
  const TemporaryDirectory folder;
  const std::string path = folder.file("x.h5");
  const std::vector<std::uint64_t> u = {0, ~std::uint64_t{0}};
  const std::vector<std::int64_t> i = {-5, 7};
  const std::vector<float> f = {1.5F, -0.25F};
  const std::string json(200'000, 'j');  // above the 64 KB that older attribute formats allow
  {
    File file = File::create(path);
    file.write("deep/er/u", u);
    file.write("deep/i", i);
    file.write("f", f);
    file.write_text("config", json);
    file.write_text("empty", "");
    file.write_strings("names", {"a", "wörter", ""});
    file.write_strings("no_names", {});
    file.set_attribute("/", "format", "thing");
    file.set_attribute("/", "big", ~std::uint64_t{0});
    file.set_attribute("/", "negative", std::int64_t{-3});
    file.set_attribute("deep/i", "shape", Shape{2, 3, 5});
    file.set_attribute("deep/i", "nothing", "");
    file.close();
  }
  const File file = File::open(path);
  EXPECT_EQ(file.read_u64("deep/er/u"), u);
  EXPECT_EQ(file.read_i64("deep/i"), i);
  EXPECT_EQ(file.read_f32("f"), f);
  EXPECT_EQ(file.read_text("config"), json);
  EXPECT_EQ(file.read_text("empty"), "");
  EXPECT_EQ(file.read_strings("names"), (std::vector<std::string>{"a", "wörter", ""}));
  EXPECT_TRUE(file.read_strings("no_names").empty());
  EXPECT_EQ(file.text_attribute("/", "format"), "thing");
  EXPECT_EQ(file.u64_attribute("/", "big"), ~std::uint64_t{0});
  EXPECT_EQ(file.i64_attribute("/", "negative"), -3);
  EXPECT_EQ(file.shape_attribute("deep/i", "shape"), (Shape{2, 3, 5}));
  EXPECT_EQ(file.text_attribute("deep/i", "nothing"), "");
  EXPECT_TRUE(file.has_attribute("/", "big"));
  EXPECT_FALSE(file.has_attribute("/", "small"));
  EXPECT_TRUE(file.exists("deep/er/u"));
  EXPECT_FALSE(file.exists("deep/down/u"));
  EXPECT_EQ(file.list("deep"), (std::vector<std::string>{"er", "i"}));
  EXPECT_EQ(file.datasets(), (std::vector<std::string>{"config", "deep/er/u", "deep/i", "empty",
                                                       "f", "names", "no_names"}));
}

TEST(Hdf5, EveryTypeIsRecognisedAgain) {
  const TemporaryDirectory folder;
  const std::vector<DType> types = {DType::kF32, DType::kBF16, DType::kU8,
                                    DType::kU16, DType::kU32,  DType::kI32,
                                    DType::kI64, DType::kU64,  DType::kF64};
  File file = File::create(folder.file("x.h5"));
  for (const DType type : types) file.create_contiguous(std::string(name_of(type)), type, {4, 2});
  file.close();
  const File read = File::open(folder.file("x.h5"));
  for (const DType type : types) {
    const DatasetInfo info = read.info(std::string(name_of(type)));
    ASSERT_TRUE(info.dtype.has_value());
    EXPECT_EQ(*info.dtype, type);
    EXPECT_EQ(info.shape, (Shape{4, 2}));
    EXPECT_EQ(info.bytes(), 8 * static_cast<std::int64_t>(size_of(type)));
    EXPECT_TRUE(info.contiguous);
  }
}

TEST(Hdf5, BytesAtTheOffsetAreTheElements) {
  const TemporaryDirectory folder;
  const std::string path = folder.file("x.h5");
  File file = File::create(path);
  const std::uint64_t large = file.create_contiguous("large", DType::kU32, {50'000});
  const std::uint64_t small = file.create_contiguous("small", DType::kF32, {2, 2});
  EXPECT_EQ(file.create_contiguous("none", DType::kF32, {0, 7}), 0U);
  file.close();
  EXPECT_EQ(large % 4096, 0U);
  std::vector<std::uint32_t> numbers(50'000);
  for (std::size_t k = 0; k < numbers.size(); ++k) numbers[k] = static_cast<std::uint32_t>(k * k);
  put_bytes(path, large, numbers.data(), numbers.size() * 4);
  const std::vector<float> four = {1, 2, 3, 4};
  put_bytes(path, small, four.data(), 16);

  const File read = File::open(path);
  EXPECT_EQ(read.info("large").offset, large);
  EXPECT_EQ(read.info("small").offset, small);
  EXPECT_FALSE(read.info("none").offset.has_value());
  EXPECT_EQ(read.info("none").shape, (Shape{0, 7}));
  std::vector<std::uint32_t> back(50'000);
  read.read("large", DType::kU32, back.data());
  EXPECT_EQ(back, numbers);
  std::vector<double> row(2);
  read.read_rows("small", 1, 1, DType::kF64, row.data());
  EXPECT_EQ(row, (std::vector<double>{3, 4}));
  EXPECT_TRUE(contains(damage_of([&] { read.read_rows("small", 1, 2, DType::kF64, row.data()); }),
                       "has no rows [1, 3)"));
}

TEST(Hdf5, Bfloat16IsReadExactlyAndNeverNarrowedTo) {
  const TemporaryDirectory folder;
  const std::string path = folder.file("x.h5");
  const std::vector<std::uint16_t> bits = {0x3f80, 0xc020, 0x0001, 0x7f80, 0x0080};
  File file = File::create(path);
  file.write("b", DType::kBF16, {5}, bits.data());
  const std::vector<float> f = {1, 2};
  file.write("f", f);
  file.close();
  const File read = File::open(path);
  const auto values = read.read_f32("b");
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::uint32_t wide = std::uint32_t{bits[i]} << 16;
    float expected = 0;
    std::memcpy(&expected, &wide, 4);
    EXPECT_EQ(values[i], expected) << i;
  }
  std::vector<std::uint16_t> back(5);
  read.read("b", DType::kBF16, back.data());
  EXPECT_EQ(back, bits);
  EXPECT_TRUE(contains(damage_of([&] { read.read("f", DType::kBF16, back.data()); }),
                       "dataset 'f' holds f32, not bf16"));
}

TEST(Hdf5, VirtualDatasetShowsBlocksAndNanForHoles) {
  const TemporaryDirectory folder;
  const std::vector<float> left = {1, 2, 3, 4};
  const std::vector<std::uint16_t> bits = {0x40a0, 0x40c0};  // 5, 6
  for (const char* name : {"a.h5", "b.h5"}) {
    File file = File::create(folder.file(name));
    if (name[0] == 'a') file.write("w", DType::kF32, {2, 2}, left.data());
    if (name[0] == 'b') file.write("w", DType::kBF16, {2, 1}, bits.data());
    file.close();
  }
  File index = File::create(folder.file("index.h5"));
  const std::vector<VirtualBlock> blocks = {
      {"a.h5", "w", {0, 0}, {2, 2}}, {"b.h5", "w", {0, 2}, {2, 1}}, {"c.h5", "w", {0, 3}, {2, 1}}};
  index.create_virtual("w", DType::kBF16, {2, 4}, blocks);
  index.close();
  const File file = File::open(folder.file("index.h5"));
  EXPECT_TRUE(file.info("w").is_virtual);
  EXPECT_EQ(file.info("w").dtype, DType::kF32);
  EXPECT_FALSE(file.info("w").offset.has_value());
  const auto w = file.read_f32("w");
  const std::vector<float> expected = {1, 2, 5, NAN, 3, 4, 6, NAN};
  for (std::size_t i = 0; i < 8; ++i) {
    if (std::isnan(expected[i]))
      EXPECT_TRUE(std::isnan(w[i])) << i;
    else
      EXPECT_EQ(w[i], expected[i]) << i;
  }
}

TEST(Hdf5, ErrorsSayWhatIsWrongWithTheFile) {
  const TemporaryDirectory folder;
  const auto open = [&](const std::string& name) {
    return damage_of([&] { File::open(folder.file(name)); });
  };
  EXPECT_TRUE(contains(open("nowhere.h5"), "nowhere.h5: cannot open: No such file or directory"));
  EXPECT_TRUE(contains(open(""), "it is a folder"));
  std::ofstream(folder.file("empty.h5")).close();
  EXPECT_TRUE(contains(open("empty.h5"), "the file is empty"));
  std::ofstream(folder.file("text.h5")) << std::string(4000, 'x');
  EXPECT_TRUE(contains(open("text.h5"), "not an HDF5 file"));

  const std::string path = small_file(folder);
  std::filesystem::copy(path, folder.file("short.h5"));
  std::filesystem::resize_file(folder.file("short.h5"), std::filesystem::file_size(path) - 1);
  EXPECT_TRUE(contains(open("short.h5"), "file is truncated: eof"));
  std::filesystem::copy(path, folder.file("flip.h5"));
  const char flipped = 'X';
  put_bytes(folder.file("flip.h5"), 40, &flipped, 1);
  EXPECT_TRUE(contains(open("flip.h5"), "checksum of its metadata"));

  const File file = File::open(path);
  EXPECT_TRUE(
      contains(damage_of([&] { file.read_u64("table/number"); }), "no dataset 'table/number'"));
  EXPECT_TRUE(contains(damage_of([&] { file.read_u64("tabel/numbers"); }),
                       "no dataset 'tabel/numbers' ('tabel' is missing)"));
  EXPECT_TRUE(
      contains(damage_of([&] { file.read_strings("table/numbers"); }), "holds u64, not strings"));
  EXPECT_TRUE(
      contains(damage_of([&] { file.u64_attribute("/", "step"); }), "has no attribute 'step'"));
  EXPECT_TRUE(
      contains(error_of([&] { File::create(path); }, ExitStatus::kFailed), "exists already"));
  EXPECT_TRUE(contains(error_of([&] { File::create(folder.file("no/x.h5")); }, ExitStatus::kFailed),
                       "No such file or directory"));
}

TEST(Hdf5, AFileStillOpenForWritingIsRefused) {
  const TemporaryDirectory folder;
  File writer = File::create(folder.file("x.h5"));
  const std::vector<float> values(100'000, 1.0F);
  writer.write("values", values);
  // A copy of an unfinished file is what a killed writer leaves behind.
  std::filesystem::copy(folder.file("x.h5"), folder.file("dead.h5"));
  EXPECT_NE(damage_of([&] { File::open(folder.file("dead.h5")); }), "");
  writer.close();
  EXPECT_EQ(File::open(folder.file("x.h5")).read_f32("values"), values);
}

TEST(Hdf5, ThreadsMayUseDifferentFilesAtOnce) {
  const TemporaryDirectory folder;
  std::vector<std::thread> threads;
  std::vector<int> good(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string path = folder.file(fmt::format("{}.h5", t));
      const std::vector<std::int64_t> mine(100, t);
      File file = File::create(path);
      for (int k = 0; k < 50; ++k) file.write(fmt::format("d{}", k), mine);
      file.close();
      const File back = File::open(path);
      for (int k = 0; k < 50; ++k)
        good[static_cast<std::size_t>(t)] += back.read_i64(fmt::format("d{}", k)) == mine;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, (std::vector<int>{50, 50, 50, 50}));
}

}  // namespace
}  // namespace longspan::io::hdf5
