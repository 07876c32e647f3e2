/// Histograms and frequencies of datasets whose contents are known.
#include "io/dataset_statistics.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/io/dataset_fixture.hpp"

namespace longspan::io {
namespace {

using testing_support::TemporaryDirectory;

TEST(DocumentLengths, BinsCoverAllDocuments) {
  DatasetFacts facts;
  facts.document_offsets = {0};
  for (std::uint64_t length : {3, 4, 5, 49, 50, 100, 1999})
    facts.document_offsets.push_back(facts.document_offsets.back() + length);
  facts.tokens = static_cast<std::int64_t>(facts.document_offsets.back());
  const DocumentLengths lengths = document_lengths(facts);
  EXPECT_EQ(lengths.shortest, 3);
  EXPECT_EQ(lengths.median, 49);
  EXPECT_EQ(lengths.longest, 1999);
  EXPECT_NEAR(lengths.mean, 2210.0 / 7, 1e-9);
  const std::vector<std::vector<std::int64_t>> expected = {
      {2, 5, 2},     {5, 10, 1},    {10, 20, 0},    {20, 50, 1},    {50, 100, 1},
      {100, 200, 1}, {200, 500, 0}, {500, 1000, 0}, {1000, 2000, 1}};
  ASSERT_EQ(lengths.bins.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(lengths.bins[i].begin, expected[i][0]);
    EXPECT_EQ(lengths.bins[i].end, expected[i][1]);
    EXPECT_EQ(lengths.bins[i].documents, expected[i][2]) << "bin from " << expected[i][0];
  }
}

TokenDataset dataset_of(const TemporaryDirectory& folder, const std::string& text,
                        bool as_ids = false) {
  write_file(folder.file("input"), text);
  PrepareRequest request;
  if (as_ids) request.format = {.kind = DatasetKind::kTokens, .text_ids = true};
  request.output = folder.file("data.h5");
  request.inputs = {folder.file("input")};
  request.replace = true;
  prepare(request);
  return TokenDataset::open(request.output);
}

TEST(TokenFrequencies, CountsAndEntropy) {
  const TemporaryDirectory folder;
  const TokenFrequencies found = token_frequencies(dataset_of(folder, "aaaabbcd"), 3);
  EXPECT_EQ(found.scanned, 8);
  EXPECT_FALSE(found.sampled);
  EXPECT_EQ(found.distinct, 4);
  EXPECT_DOUBLE_EQ(found.entropy_bits, 1.75);
  ASSERT_EQ(found.most_frequent.size(), 3u);
  EXPECT_EQ(found.most_frequent[0].id, 'a');
  EXPECT_EQ(found.most_frequent[0].count, 4);
  EXPECT_EQ(found.most_frequent[1].id, 'b');
  EXPECT_EQ(found.most_frequent[2].id, 'c');  // before d, which is as frequent
}

TEST(TokenFrequencies, LargeVocabularies) {
  const TemporaryDirectory folder;
  const TokenFrequencies found =
      token_frequencies(dataset_of(folder, "2000000000 5 2000000000 6", true), 1);
  EXPECT_EQ(found.distinct, 3);
  EXPECT_DOUBLE_EQ(found.entropy_bits, 1.5);
  EXPECT_EQ(found.most_frequent.at(0).id, 2000000000);
}

TEST(TokenFrequencies, SamplesAboveTheLimit) {
  const TemporaryDirectory folder;
  std::string text(4 << 20, 'a');
  std::fill(text.begin() + (2 << 20), text.end(), 'b');
  const TokenDataset dataset = dataset_of(folder, text);
  std::int64_t calls = 0;
  const TokenFrequencies found =
      token_frequencies(dataset, 5, 2 << 20, [&](std::int64_t, std::int64_t total) {
        ++calls;
        EXPECT_EQ(total, 2);
      });
  EXPECT_TRUE(found.sampled);
  EXPECT_EQ(found.scanned, 2 << 20);
  EXPECT_EQ(found.distinct, 2);  // pieces from both halves
  EXPECT_EQ(calls, 2);
  EXPECT_FALSE(token_frequencies(dataset, 5, 4 << 20).sampled);
}

}  // namespace
}  // namespace longspan::io
