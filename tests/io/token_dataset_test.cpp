/// Opening and reading datasets: contents, documents, hashes, and one clear line for every file
/// that is not what it should be.
#include "io/token_dataset.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <optional>

#include "io/dataset_layout.hpp"
#include "io/hdf5.hpp"
#include "tests/io/dataset_fixture.hpp"

namespace longspan::io {
namespace {

using testing_support::TemporaryDirectory;

/// A dataset written table by table, so that each can be wrong.
struct Recipe {
  std::string format = "longspan-dataset";
  std::int64_t version = 1;
  std::string kind = "tokens";
  std::string uuid = "aaaaaaaa-aaaa-4aaa-aaaa-aaaaaaaaaaaa";  // version 4: not made of the contents
  std::string tokenizer = R"({"kind":"ids"})";
  std::int64_t vocabulary = 10;
  std::vector<std::uint16_t> tokens = {0, 1, 2, 3, 4, 5, 6, 9};
  std::vector<std::uint64_t> offsets = {0, 3, 3, 8};
  std::vector<std::uint64_t> splits = {0, 2, 2, 3};
  std::optional<std::vector<std::uint64_t>> hashes;
  std::string without;  ///< a dataset that is left out
  bool virtual_tokens = false, float_tokens = false;

  std::string write(const TemporaryDirectory& folder) const {
    const std::string path = folder.file("recipe.h5");
    std::filesystem::remove(path);
    hdf5::File file = hdf5::File::create(path);
    file.set_attribute("/", "format", format);
    file.set_attribute("/", "format_version", version);
    file.set_attribute("/", "kind", kind);
    file.set_attribute("/", "dataset_uuid", uuid);
    file.set_attribute("/", "source", "a test");
    file.set_attribute("/", "created_by", "a test");
    const Shape shape = {static_cast<std::int64_t>(tokens.size())};
    if (without != "tokens") {
      if (virtual_tokens) {
        const hdf5::VirtualBlock block{"other.h5", "tokens", {0}, shape};
        file.create_virtual("tokens", DType::kU16, shape, {&block, 1});
      } else if (float_tokens) {
        file.write("tokens", std::vector<float>(tokens.begin(), tokens.end()));
      } else {
        file.write("tokens", DType::kU16, shape, tokens.data());
      }
      file.set_attribute("tokens", "vocab_size", vocabulary);
    }
    const std::vector<std::uint64_t> right = {xxh3(tokens.data(), tokens.size() * 2)};
    if (without != "block_xxh3") file.write("block_xxh3", hashes.value_or(right));
    if (without != "doc_offsets") file.write("doc_offsets", offsets);
    if (without != "splits") {
      const auto columns = static_cast<std::int64_t>(splits.size()) / 2;
      file.write("splits", DType::kU64, {2, columns}, splits.data());
    }
    if (without != "tokenizer") file.write_text("tokenizer", tokenizer);
    file.close();
    return path;
  }
};

TEST(TokenDataset, ReadsWhatAnotherProgramWrote) {
  const TemporaryDirectory folder;
  const TokenDataset dataset = TokenDataset::open(Recipe{}.write(folder));
  EXPECT_EQ(all_tokens(dataset), (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 9}));
  EXPECT_EQ(dataset.facts().source, "a test");
  EXPECT_EQ(dataset.split_begin(Split::kTrain), 0);
  EXPECT_EQ(dataset.split_tokens(Split::kTrain), 3);
  EXPECT_EQ(dataset.split_begin(Split::kValid), 3);
  EXPECT_EQ(dataset.split_tokens(Split::kValid), 5);
  std::vector<std::int32_t> documents(8);
  dataset.read_documents(0, 8, documents.data());
  EXPECT_EQ(documents, (std::vector<std::int32_t>{0, 0, 0, 2, 2, 2, 2, 2}));  // document 1 is empty
  dataset.read_documents(2, 2, documents.data());
  EXPECT_EQ(documents[0], 0);
  EXPECT_EQ(documents[1], 2);
  dataset.verify();
}

TEST(TokenDataset, AnyRangeOfAnyWidth) {
  const TemporaryDirectory folder;
  for (const std::uint32_t vocabulary : {200u, 60000u, 1u << 20}) {
    std::string text;
    std::vector<std::int32_t> expected;
    for (std::uint32_t i = 0; i < 300000; ++i) {
      expected.push_back(static_cast<std::int32_t>(i * 2654435761u % vocabulary));
      text += fmt::format("{} ", expected.back());
    }
    write_file(folder.file("ids"), text);
    PrepareRequest request;
    request.format = {.kind = DatasetKind::kTokens, .text_ids = true};
    request.output = folder.file("data.h5");
    request.inputs = {folder.file("ids")};
    request.replace = true;
    prepare(request);
    const TokenDataset dataset = TokenDataset::open(request.output);
    for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {0, 300000}, {0, 0}, {299999, 1}, {300000, 0}, {12345, 131072}, {1, 262145}}) {
      std::vector<std::int32_t> ids(static_cast<std::size_t>(count) + 1, -7);
      dataset.read(first, count, ids.data());
      ASSERT_TRUE(std::equal(ids.begin(), ids.end() - 1, expected.begin() + first))
          << first << " " << count;
      ASSERT_EQ(ids.back(), -7) << "wrote beyond the end";
    }
    EXPECT_THROW(dataset.read(-1, 1, expected.data()), Error);
    EXPECT_THROW(dataset.read(299999, 2, expected.data()), Error);
  }
}

TEST(TokenDataset, IdsOutsideTheVocabularyAreDamage) {
  const TemporaryDirectory folder;
  Recipe recipe;
  recipe.vocabulary = 9;
  const TokenDataset dataset = TokenDataset::open(recipe.write(folder));
  std::vector<std::int32_t> ids(8);
  dataset.read(0, 7, ids.data());
  const std::string message =
      error_of([&] { dataset.read(2, 6, ids.data()); }, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(message, "token 7 has the id 9")) << message;
}

TEST(TokenDataset, EveryForeignOrBrokenFileGetsItsLine) {
  const TemporaryDirectory folder;
  const auto message_for = [&](const std::function<void(Recipe&)>& change) {
    Recipe recipe;
    change(recipe);
    const std::string path = recipe.write(folder);
    const std::string message = error_of([&] { TokenDataset::open(path); }, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(message, path)) << message;
    return message;
  };
  const auto expect = [](const std::string& message, const char* part) {
    EXPECT_TRUE(contains(message, part)) << message;
  };
  expect(message_for([](Recipe& r) { r.format = "longspan-checkpoint"; }),
         "holds 'longspan-checkpoint', not a dataset");
  expect(message_for([](Recipe& r) { r.version = 2; }),
         "format version 2, this program reads version 1");
  expect(message_for([](Recipe& r) { r.kind = "series"; }), "kind 'series'");
  expect(message_for([](Recipe& r) { r.tokenizer = R"({"kind":)"; }), "tokenizer");
  expect(message_for([](Recipe& r) { r.tokenizer = R"({"kind":"wordpiece"})"; }),
         "'wordpiece' is unknown");
  expect(message_for([](Recipe& r) { r.vocabulary = 0; }), "vocabulary of 0");
  expect(message_for([](Recipe& r) { r.vocabulary = std::int64_t{1} << 31; }),
         "vocabulary of 2147483648");
  expect(message_for([](Recipe& r) { r.virtual_tokens = true; }), "must be contiguous");
  expect(message_for([](Recipe& r) { r.float_tokens = true; }),
         "expected one dim of u8, u16 or u32");
  expect(message_for([](Recipe& r) { r.offsets = {0, 3, 3, 7}; }), "end with the 8 tokens");
  expect(message_for([](Recipe& r) { r.offsets = {1, 3, 3, 8}; }), "begin with 0");
  expect(message_for([](Recipe& r) { r.offsets = {0, 5, 3, 8}; }), "falls from 5 to 3 at entry 1");
  expect(message_for([](Recipe& r) { r.offsets = {0}; }), "1 entries");
  expect(message_for([](Recipe& r) { r.splits = {0, 2, 2, 4}; }), "valid [2, 4)");
  expect(message_for([](Recipe& r) { r.splits = {1, 2, 2, 3}; }), "train [1, 2)");
  expect(message_for([](Recipe& r) { r.splits = {0, 2, 0, 2, 3, 0}; }), "shape [2, 3]");
  expect(message_for([](Recipe& r) {
           r.hashes = std::vector<std::uint64_t>{1, 2};
         }),
         "has 2 hashes");
  expect(message_for([](Recipe& r) { r.uuid = "aaaaaaaa-aaaa-8aaa-aaaa-aaaaaaaaaaaa"; }),
         "the file is damaged");
  for (const char* name : {"tokens", "block_xxh3", "doc_offsets", "splits", "tokenizer"})
    expect(message_for([&](Recipe& r) { r.without = name; }), name);
}

TEST(TokenDataset, MissingEmptyAndForeignFiles) {
  const TemporaryDirectory folder;
  const auto message_for = [&](const std::string& path) {
    const std::string message = error_of([&] { TokenDataset::open(path); }, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(message, path)) << message;
    return message;
  };
  EXPECT_TRUE(contains(message_for(folder.file("none.h5")), "No such file"));
  EXPECT_TRUE(contains(message_for(folder.path()), "folder"));
  write_file(folder.file("empty.h5"), "");
  EXPECT_TRUE(contains(message_for(folder.file("empty.h5")), "empty"));
  write_file(folder.file("text.h5"), "this is not HDF5 at all, however long it may be");
  EXPECT_TRUE(contains(message_for(folder.file("text.h5")), "not an HDF5 file"));
  hdf5::File plain = hdf5::File::create(folder.file("plain.h5"));
  plain.write_text("x", "y");
  plain.close();
  EXPECT_TRUE(contains(message_for(folder.file("plain.h5")), "no attribute 'format'"));
}

class PreparedFile : public testing::Test {
 protected:
  PreparedFile() {
    // Two hash blocks: 20 MB.
    std::string text(20'000'000, ' ');
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 23);
    write_file(folder.file("text"), text);
    PrepareRequest request;
    request.output = path = folder.file("data.h5");
    request.inputs = {folder.file("text")};
    prepare(request);
  }
  void flip(std::uint64_t offset) const {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(byte);
    ASSERT_TRUE(file.good());
  }
  std::uint64_t offset_of(const std::string& name) const {
    return hdf5::File::open(path).info(name).offset.value();
  }

  TemporaryDirectory folder;
  std::string path;
};

TEST_F(PreparedFile, TruncationIsFoundAtOpen) {
  const auto bytes = std::filesystem::file_size(path);
  for (const auto left : {bytes - 1, bytes / 2, std::uintmax_t{4096}, std::uintmax_t{10}}) {
    std::filesystem::resize_file(path, left);
    const std::string message = error_of([&] { TokenDataset::open(path); }, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(message, path)) << message;
    if (left > 4096) {
      EXPECT_TRUE(contains(message, "truncated")) << message;
    }
  }
}

TEST_F(PreparedFile, ShrinkingWhileOpenIsFoundByTheRead) {
  const TokenDataset dataset = TokenDataset::open(path);
  std::filesystem::resize_file(path, 1 << 20);
  std::vector<std::int32_t> ids(100);
  dataset.read(0, 100, ids.data());
  error_of([&] { dataset.read(19'000'000, 100, ids.data()); }, ExitStatus::kDamaged);
}

TEST_F(PreparedFile, VerifyNamesTheBlock) {
  TokenDataset::open(path).verify();
  const std::uint64_t tokens = offset_of("tokens");
  EXPECT_EQ(tokens % 4096, 0u);
  flip(tokens + 19'999'999);
  const TokenDataset dataset = TokenDataset::open(path);
  const std::string message = error_of([&] { dataset.verify(); }, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(message, "block 1 of 2")) << message;
  EXPECT_TRUE(contains(message, std::to_string(tokens + (16 << 20)))) << message;
  flip(tokens);
  EXPECT_TRUE(contains(error_of([&] { dataset.verify(); }, ExitStatus::kDamaged), "block 0 of 2"));
}

TEST_F(PreparedFile, DamagedTablesAreFoundAtOpen) {
  for (const char* name : {"doc_offsets", "block_xxh3", "tokenizer"}) {
    const std::uint64_t at = offset_of(name) + 9;
    flip(at);
    error_of([&] { TokenDataset::open(path); }, ExitStatus::kDamaged);
    flip(at);
    TokenDataset::open(path);
  }
}

TEST(Tokenizer, EncodesAndDecodes) {
  using Ids = std::vector<std::int32_t>;
  const Tokenizer bytes(R"({"kind":"bytes"})");
  EXPECT_EQ(bytes.encode("a\xff"), (Ids{97, 255}));
  EXPECT_EQ(bytes.decode({97, 255}), "a\xff");
  EXPECT_THROW(bytes.decode({256}), Error);
  const Tokenizer letters(R"({"kind":"nucleotides","letters":"ACGTN"})");
  EXPECT_EQ(letters.encode("acgTN"), (Ids{0, 1, 2, 3, 4}));
  EXPECT_EQ(letters.encode("ac\r\ngT N\n"),
            (Ids{0, 1, 2, 3, 4}));  // as FASTA has it, and prompt files
  EXPECT_EQ(letters.decode({4, 3, 0}), "NTA");
  EXPECT_TRUE(contains(error_of([&] { letters.encode("ACX"); }, ExitStatus::kUsage), "'X'"));
  EXPECT_THROW(letters.decode({5}), Error);
  const Tokenizer ids(R"({"kind":"ids"})");
  EXPECT_EQ(ids.encode(" 5  70000,1\n"), (Ids{5, 70000, 1}));
  EXPECT_EQ(ids.encode(""), Ids{});
  EXPECT_EQ(ids.decode({5, 70000}), "5 70000");
  EXPECT_TRUE(contains(error_of([&] { ids.encode("5 x"); }, ExitStatus::kUsage), "'x'"));
  for (const char* json : {"", "[]", "{}", R"({"kind":3})", R"({"kind":"nucleotides"})",
                           R"({"kind":"nucleotides","letters":""})"})
    error_of([&] { const Tokenizer bad(json); }, ExitStatus::kDamaged);
}

}  // namespace
}  // namespace longspan::io
