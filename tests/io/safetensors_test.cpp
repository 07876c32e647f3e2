#include "io/safetensors.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using testing_support::TemporaryDirectory;

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

/// What the parser says of a header; "fine" if nothing, "UNTYPED" for anything but one damaged
/// line.
std::string verdict(const std::string& header, std::int64_t data_bytes) {
  try {
    parse_safetensors_header(header, data_bytes);
    return "fine";
  } catch (const Error& error) {
    const std::string text = error.what();
    if (error.status() != ExitStatus::kDamaged || text.find('\n') != std::string::npos)
      return "UNTYPED " + text;
    return text;
  }
}

TEST(SafetensorsHeader, SaysWhatIsInTheFile) {
  const std::string text =
      "{\"__metadata__\":{\"format\":\"pt\"}," + tensor("b", "BF16", "[2,3]", "[4,16]") + "," +
      tensor("a", "F32", "[]", "[0,4]") + "," + tensor("none", "F32", "[0,5]", "[16,16]") + "}   ";
  const SafetensorsHeader header = parse_safetensors_header(text, 16);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[0].shape, Shape{});
  EXPECT_EQ(header.tensors[1].name, "b");
  EXPECT_EQ(header.tensors[1].shape, (Shape{2, 3}));
  EXPECT_EQ(header.tensors[1].dtype, "BF16");
  EXPECT_EQ(header.tensors[1].begin, 4);
  EXPECT_EQ(header.tensors[1].end, 16);
  EXPECT_EQ(parse_safetensors_header("{}", 0).tensors.size(), 0u);
}

TEST(SafetensorsHeader, HostileOnesAreRefusedInOneLine) {
  struct Case {
    std::string header;
    std::int64_t bytes;
    const char* says;
  };
  const std::string good = tensor("a", "F32", "[2]", "[0,8]");
  const std::vector<Case> cases = {
      {"", 0, "does not begin with '{'"},
      {"[]", 0, "does not begin with '{'"},
      {" {}", 0, "does not begin with '{'"},
      {"{" + good, 8, "no valid JSON"},
      {"{" + good + "}}", 8, "no valid JSON"},
      {"{\"\xff\":1}", 0, "no valid JSON"},
      {"{\"a\":1}", 0, "'a' is no JSON object"},
      {"{\"a\":[1]}", 0, "'a' is no JSON object"},
      {"{\"a\":" + std::string(100000, '['), 0, "'a' is no JSON object"},
      {"{\"a\":{\"shape\":" + std::string(100000, '['), 0, "nested deeper"},
      {"{\"a\":{\"x\":{\"y\":{}}}}", 0, "nested deeper"},
      {"{" + good + "," + good + "}", 8, "two tensors are called 'a'"},
      {"{" + tensor("", "F32", "[2]", "[0,8]") + "}", 8, "cannot be the name"},
      {"{" + tensor("a\\u0000b", "F32", "[2]", "[0,8]") + "}", 8, "cannot be the name"},
      {"{" + tensor("a\\nb", "F31", "[2]", "[0,8]") + "}", 8, "'a?b' is of the unknown type"},
      {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
       "\"dtype\" twice"},
      {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "no \"dtype\""},
      {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "no list \"shape\""},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "no list \"data_offsets\""},
      {"{" + tensor("a", "F32", "[-2]", "[0,8]") + "}", 8, "whole numbers"},
      {"{" + tensor("a", "F32", "[2.0]", "[0,8]") + "}", 8, "whole numbers"},
      {"{" + tensor("a", "F32", "[9223372036854775808]", "[0,8]") + "}", 8, "below 2^63"},
      {"{" + tensor("a", "F32", "[99999999999999999999]", "[0,8]") + "}", 8, "whole numbers"},
      // 2^62 elements of 4 bytes are 2^64 bytes, which is 0.
      {"{" + tensor("a", "F32", "[4611686018427387904]", "[0,0]") + "}", 0, "more than 2^63 bytes"},
      {"{" + tensor("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", 0,
       "more than 2^63 bytes"},
      {"{" + tensor("a", "U8", "[9223372036854775807]", "[0,9223372036854775807]") + "}", 8,
       "ends at byte 9223372036854775807 of 8"},
      {"{" + tensor("a", "F32", "[3]", "[0,8]") + "}", 8, "has 12 bytes"},
      {"{" + tensor("a", "F32", "[2]", "[8,0]") + "}", 8, "the first not above the second"},
      {"{" + tensor("a", "F32", "[2]", "[0,4,8]") + "}", 8, "two \"data_offsets\""},
      {"{" + good + "," + tensor("b", "F32", "[1]", "[4,8]") + "}", 8, "in another tensor"},
      {"{" + good + "," + tensor("b", "F32", "[1]", "[12,16]") + "}", 16, "behind a hole"},
      {"{" + tensor("a", "F32", "[1]", "[4,8]") + "}", 8, "behind a hole"},
      {"{" + good + "}", 9, "9 bytes of data follow the header, its tensors have 8"},
      {"{" + good + "}", 7, "ends at byte 8 of 7"},
      {"{\"__metadata__\":{\"format\":1}," + good + "}", 8, "metadata is no text"},
  };
  for (const Case& c : cases)
    EXPECT_NE(verdict(c.header, c.bytes).find(c.says), std::string::npos)
        << c.header.substr(0, 120) << "\n  -> " << verdict(c.header, c.bytes);
  std::string dims = "[1";
  for (int i = 0; i < 100000; ++i) dims += ",1";
  EXPECT_NE(verdict("{" + tensor("a", "U8", dims + "]", "[0,1]") + "}", 1).find("too many dims"),
            std::string::npos);
}

void write_file(const std::string& path, std::uint64_t header_length, const std::string& rest) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header_length), sizeof header_length);
  file << rest;
}

std::string failure_of_file(const std::string& path) {
  try {
    SafetensorsFile file(path);
    return "fine";
  } catch (const Error& error) {
    return error.status() == ExitStatus::kDamaged ? error.what() : "UNTYPED";
  }
}

TEST(SafetensorsFile, LengthsAreCheckedBeforeAnythingIsAllocated) {
  const TemporaryDirectory folder;
  const std::string path = folder.path() + "/x.safetensors";
  EXPECT_NE(failure_of_file(path).find("cannot open"), std::string::npos);
  std::ofstream(path) << "short";
  EXPECT_NE(failure_of_file(path).find("too few"), std::string::npos);
  for (const std::uint64_t length : {std::numeric_limits<std::uint64_t>::max(),
                                     std::uint64_t{1} << 63, std::uint64_t{100'000'001}}) {
    write_file(path, length, "{}");
    EXPECT_NE(failure_of_file(path).find("100000000 are allowed"), std::string::npos);
  }
  write_file(path, 100'000'000, "{}");
  EXPECT_NE(failure_of_file(path).find("truncated"), std::string::npos);
  write_file(path, 2, "{}");
  EXPECT_EQ(failure_of_file(path), "fine");
}

TEST(SafetensorsFile, ReadsEveryTypeOfWeights) {
  const TemporaryDirectory folder;
  const std::string path = folder.path() + "/x.safetensors";
  // 1, -2.5, the smallest subnormal, the largest number, infinity
  const std::uint16_t halves[] = {0x3c00, 0xc100, 0x0001, 0x7bff, 0x7c00};
  const std::uint16_t brains[] = {0x3f80, 0xc020};
  const double doubles[] = {0.1};
  std::string header =
      "{" + tensor("h", "F16", "[5]", "[0,10]") + "," + tensor("b", "BF16", "[2]", "[10,14]") +
      "," + tensor("d", "F64", "[1]", "[14,22]") + "," + tensor("i", "I16", "[1]", "[22,24]") + "}";
  std::string data(24, '\0');
  std::memcpy(data.data(), halves, 10);
  std::memcpy(data.data() + 10, brains, 4);
  std::memcpy(data.data() + 14, doubles, 8);
  write_file(path, header.size(), header + data);
  const SafetensorsFile file(path);
  const auto& tensors = file.header().tensors;
  std::vector<float> h(5), b(1), d(1);
  file.read(tensors[0], 0, 5, h.data());
  EXPECT_EQ(h, (std::vector<float>{1.0f, -2.5f, std::ldexp(1.0f, -24), 65504.0f,
                                   std::numeric_limits<float>::infinity()}));
  file.read(tensors[1], 1, 1, b.data());
  EXPECT_EQ(b[0], -2.5f);
  file.read(tensors[2], 0, 1, d.data());
  EXPECT_EQ(d[0], 0.1f);
  EXPECT_THROW(file.read(tensors[3], 0, 1, d.data()), Error);
  EXPECT_THROW(file.read(tensors[0], 4, 2, h.data()), Error);
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const TemporaryDirectory folder;
  // 1 + 2^-8 is between two bfloat16 numbers: to the even one, 1. A little more goes up.
  const std::vector<float> values = {1.0f + std::ldexp(1.0f, -8),
                                     1.0f + 1.1f * std::ldexp(1.0f, -8),
                                     -3.25f,
                                     1e-40f,
                                     std::numeric_limits<float>::infinity(),
                                     std::nanf("")};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string path = folder.path() + "/" + std::string(name_of(dtype)) + ".safetensors";
    SafetensorsWriter writer(path, {{"one", {2, 3}}, {"two", {1}}}, dtype, {{"format", "pt"}});
    writer.write(1, 0, 1, values.data() + 2);
    writer.write(0, 3, 3, values.data() + 3);
    writer.write(0, 0, 3, values.data());
    writer.close();
    const SafetensorsFile file(path);
    EXPECT_EQ(file.header().metadata.at("format"), "pt");
    ASSERT_EQ(file.header().tensors.size(), 2u);
    EXPECT_EQ(file.header().tensors[0].shape, (Shape{2, 3}));
    std::vector<float> back(6);
    file.read(file.header().tensors[0], 0, 6, back.data());
    EXPECT_TRUE(std::isnan(back[5]));
    EXPECT_EQ(back[2], -3.25f);
    EXPECT_EQ(back[4], values[4]);
    if (dtype == DType::kF32) {
      EXPECT_TRUE(std::equal(values.begin(), values.begin() + 5, back.begin()));
    } else {
      EXPECT_EQ(back[0], 1.0f);
      EXPECT_EQ(back[1], 1.0f + std::ldexp(1.0f, -7));
    }
    file.read(file.header().tensors[1], 0, 1, back.data());
    EXPECT_EQ(back[0], -3.25f);
  }
}

/// A folder of two files and an index over them.
void write_sharded(const std::string& folder, const std::string& index) {
  const std::vector<float> values = {1, 2};
  for (const char* name : {"a", "b"}) {
    SafetensorsWriter writer(folder + "/" + name + ".safetensors", {{name, {2}}}, DType::kF32, {});
    writer.write(0, 0, 2, values.data());
    writer.close();
  }
  std::ofstream(folder + "/model.safetensors.index.json") << index;
}

std::string failure_of_folder(const std::string& folder) {
  try {
    SafetensorsFolder(folder).names();
    return "fine";
  } catch (const Error& error) {
    return error.status() == ExitStatus::kDamaged ? error.what() : "UNTYPED";
  }
}

TEST(SafetensorsFolder, FollowsAnIndexThatStaysInItsFolder) {
  const TemporaryDirectory folder;
  const auto map = [](const std::string& entries) { return "{\"weight_map\":{" + entries + "}}"; };
  const std::string a = "\"a\":\"a.safetensors\"", b = "\"b\":\"b.safetensors\"";
  EXPECT_NE(failure_of_folder(folder.path()).find("neither"), std::string::npos);
  write_sharded(folder.path(), map(a + "," + b));
  const SafetensorsFolder good(folder.path());
  EXPECT_EQ(good.names(), (std::vector<std::string>{"a", "b"}));
  float value = 0;
  good.read("b", 1, 1, &value);
  EXPECT_EQ(value, 2.0f);

  const auto says = [&](const std::string& index, const std::string& what) {
    write_sharded(folder.path(), index);
    EXPECT_NE(failure_of_folder(folder.path()).find(what), std::string::npos)
        << index << "\n  -> " << failure_of_folder(folder.path());
  };
  for (const char* escape : {"../a.safetensors", "/etc/passwd", "x/../../a", "..", ""})
    says(map(a + ",\"b\":\"" + escape + "\""), "not the name of a file in its folder");
  says(map(a + ",\"b\":\"c.safetensors\""), "cannot open");
  says(map(a + ",\"b\":\"a.safetensors\""), "should be in it");
  says(map(a + "," + b + ",\"c\":\"a.safetensors\""), "'c' should be in it");
  says(map("\"b\":\"a.safetensors\""), "does not say");
  says(map(a + ",\"b\":1"), "is in no file");
  says("{}", "weight_map");
  says("[" + std::string(200000, '['), "nested deeper");
  says("{\"weight_map\":", "no JSON object");
}

}  // namespace
}  // namespace longspan::io
