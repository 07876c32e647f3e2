/// From files to datasets and back: every kind of input, splits, limits, reproducibility, and what
/// is refused.
#include "io/prepare_dataset.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <thread>

#include "io/dataset_writer.hpp"
#include "io/fasta.hpp"
#include "tests/io/dataset_fixture.hpp"

namespace longspan::io {
namespace {

namespace fs = std::filesystem;
using testing_support::TemporaryDirectory;
using Texts = std::vector<std::string>;

PrepareRequest request_for(const TemporaryDirectory& folder, DatasetKind kind,
                           std::vector<std::string> inputs) {
  PrepareRequest request;
  request.format.kind = kind;
  request.output = folder.file("data.h5");
  request.inputs = std::move(inputs);
  request.validation = 0;
  request.created_by = "test";
  return request;
}

template <class T>
std::string raw(const std::vector<T>& ids) {
  std::string bytes(ids.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), ids.data(), bytes.size());
  return bytes;
}

void expect_nothing_left(const PrepareRequest& request) {
  EXPECT_FALSE(fs::exists(request.output));
  EXPECT_FALSE(fs::exists(request.output + ".partial"));
}

TEST(PrepareText, EveryFileIsADocumentOfItsBytes) {
  const TemporaryDirectory folder;
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes += static_cast<char>(i);
  fs::create_directory(folder.file("in"));
  write_file(folder.file("in/a"), bytes);
  write_file(folder.file("in/b"), gzip("packed text"));
  write_file(folder.file("in/c"), "");
  write_file(folder.file("in/d"), gzip(""));
  write_file(folder.file("in/e"), "end");
  const PrepareSummary summary =
      prepare(request_for(folder, DatasetKind::kText, {folder.file("in")}));
  EXPECT_EQ(summary.input_files, 4);
  EXPECT_EQ(summary.input.empty, 1);
  EXPECT_EQ(summary.empty_documents, 1);
  EXPECT_EQ(summary.counts.compressed_files, 2);
  const TokenDataset dataset = TokenDataset::open(folder.file("data.h5"));
  EXPECT_EQ(documents_of(dataset), (Texts{bytes, "packed text", "end"}));
  EXPECT_EQ(dataset.facts().vocabulary, 256);
  EXPECT_EQ(dataset.facts().dtype, DType::kU8);
  EXPECT_EQ(dataset.facts().train_documents, 3);
  EXPECT_EQ(dataset.split_tokens(Split::kValid), 0);
  EXPECT_EQ(dataset.facts().created_by, "test");
  EXPECT_TRUE(contains(dataset.facts().source, "text from 4 files"));
  EXPECT_EQ(dataset.facts().uuid, summary.facts.uuid);
  EXPECT_EQ(summary.file_bytes, static_cast<std::int64_t>(fs::file_size(folder.file("data.h5"))));
  dataset.verify();
}

TEST(PrepareText, DocumentsLargerThanEveryBuffer) {
  // 40 MB cross the borders of reading blocks, hash blocks and, with a validation split, of the two
  // writers.
  const TemporaryDirectory folder;
  std::string large(37'000'001, ' ');
  for (std::size_t i = 0; i < large.size(); ++i)
    large[i] = static_cast<char>(i * 2654435761u >> 24);
  write_file(folder.file("a"), large);
  write_file(folder.file("b"), large.substr(5, 3'000'000));
  PrepareRequest request =
      request_for(folder, DatasetKind::kText, {folder.file("a"), folder.file("b")});
  request.validation = 0.1;
  const PrepareSummary summary = prepare(request);
  EXPECT_EQ(summary.train_tokens, 37'000'001);
  const TokenDataset dataset = TokenDataset::open(request.output);
  const Texts documents = documents_of(dataset);
  ASSERT_EQ(documents.size(), 2u);
  EXPECT_TRUE(documents[0] == large);
  EXPECT_TRUE(documents[1] == large.substr(5, 3'000'000));
  dataset.verify();  // hashes of full, shared and last blocks
}

TEST(PrepareGenome, RecordsAreDocumentsOfUpperCaseLetters) {
  const TemporaryDirectory folder;
  const std::string fasta =
      "\n; a comment\n>chr1 first record\nACGT\nacgtn\n\n>chr2\r\nNRYSW\r\nKMBDHVU\r\n>chr3\nA "
      "C\tG\n>last\nT";
  write_file(folder.file("x.fa"), fasta);
  write_file(folder.file("y.fna.gz"), gzip(">p\nAC\n") + gzip("GT\n>q\nTT\n"));
  write_file(folder.file("readme.txt"), "not a genome");
  const PrepareSummary summary =
      prepare(request_for(folder, DatasetKind::kGenome, {folder.path()}));
  const TokenDataset dataset = TokenDataset::open(folder.file("data.h5"));
  EXPECT_EQ(documents_of(dataset), (Texts{"ACGTACGTN", "NRYSWKMBDHVU", "ACG", "T", "ACGT", "TT"}));
  EXPECT_EQ(summary.counts.lower_case, 5);
  EXPECT_EQ(summary.input.other_endings, 1);
  EXPECT_EQ(dataset.facts().vocabulary, 16);
  EXPECT_EQ(dataset.facts().tokenizer, R"({"kind":"nucleotides","letters":"ACGTNRYSWKMBDHVU"})");
}

TEST(PrepareGenome, PiecesOfAnySizeGiveTheSameDocuments) {
  class Collector : public DocumentSink {
   public:
    void begin_document(const std::string& name) override { text += "[" + name + "]"; }
    void tokens(const TokenRun& run) override {
      for (std::int64_t i = 0; i < run.count; ++i)
        text += kNucleotides[static_cast<const std::uint8_t*>(run.ids)[i]];
    }
    void end_document() override { text += "."; }
    std::string text;
  };
  const std::string fasta =
      ">one  more words\r\nACGT\r\nnnX-\n;skip > this\n\n>two\nTTT\n>three\nA";
  const InputFile file{"f.fa", "f.fa", static_cast<std::int64_t>(fasta.size())};
  for (std::size_t piece = 1; piece <= fasta.size(); ++piece) {
    Collector sink;
    InputCounts counts;
    FastaParser parser(file, /*unknown_as_n=*/true, sink, counts);
    for (std::size_t at = 0; at < fasta.size(); at += piece)
      parser.feed({reinterpret_cast<const std::uint8_t*>(fasta.data()) + at,
                   std::min(piece, fasta.size() - at)});
    parser.finish();
    ASSERT_EQ(sink.text, "[f.fa:one]ACGTNNNN.[f.fa:two]TTT.[f.fa:three]A.")
        << "pieces of " << piece;
    ASSERT_EQ(counts.unknown, 2);
    ASSERT_EQ(counts.lower_case, 2);
  }
}

TEST(PrepareGenome, BadFilesAreExplained) {
  const TemporaryDirectory folder;
  const PrepareRequest request = request_for(folder, DatasetKind::kGenome, {folder.file("x.fa")});
  const auto message_for = [&](const std::string& fasta) {
    write_file(folder.file("x.fa"), fasta);
    const std::string message = error_of([&] { prepare(request); }, ExitStatus::kDamaged);
    expect_nothing_left(request);
    EXPECT_TRUE(contains(message, folder.file("x.fa"))) << message;
    return message;
  };
  const std::string unknown = message_for(">chr1 words\nACGT\nAC*T\n");
  for (const char* part : {"line 3", "'chr1'", "position 7", "'*'", "--unknown n"})
    EXPECT_TRUE(contains(unknown, part)) << unknown;
  EXPECT_TRUE(contains(message_for(std::string(">a\nAC\0T", 7)), "byte 0x00"));
  EXPECT_TRUE(contains(message_for("\nACGT\n"), "line 2: 'A' stands before the first '>'"));
  EXPECT_TRUE(contains(message_for("@read\nACGT\n+\nIIII\n"), "FASTQ"));
  const std::string empty = message_for(">one\nAC\n>two\n\n>three\nA\n");
  EXPECT_TRUE(contains(empty, "line 3: record 'two' has no letters")) << empty;
  EXPECT_TRUE(contains(message_for(">one\nAC\n>two"), "'two' has no letters"));
  EXPECT_TRUE(contains(message_for(gzip(">one\nACGT\n").substr(0, 20)), "cut off"));

  PrepareRequest forgiving = request;
  forgiving.format.unknown_as_n = true;
  write_file(folder.file("x.fa"), ">chr1\nAC*-T\n");
  EXPECT_EQ(prepare(forgiving).counts.unknown, 2);
  EXPECT_EQ(documents_of(TokenDataset::open(request.output)), Texts{"ACNNT"});
}

TEST(PrepareTokens, RawIdsOfEveryWidthGetTheSmallestTypeThatFits) {
  const TemporaryDirectory folder;
  const auto check = [&](DType input, const std::string& bytes, std::int64_t vocabulary,
                         DType expected, const std::string& text,
                         std::int64_t expected_vocabulary) {
    write_file(folder.file("ids.bin"), bytes);
    PrepareRequest request = request_for(folder, DatasetKind::kTokens, {folder.file("ids.bin")});
    request.format.id_dtype = input;
    request.vocabulary = vocabulary;
    request.replace = true;
    prepare(request);
    const TokenDataset dataset = TokenDataset::open(request.output);
    EXPECT_EQ(dataset.facts().dtype, expected);
    EXPECT_EQ(dataset.facts().vocabulary, expected_vocabulary);
    EXPECT_EQ(documents_of(dataset), Texts{text});
    EXPECT_EQ(dataset.facts().tokenizer, R"({"kind":"ids"})");
  };
  check(DType::kU8, raw<std::uint8_t>({0, 7, 255}), 0, DType::kU8, "0 7 255", 256);
  check(DType::kU8, raw<std::uint8_t>({1, 2}), 50257, DType::kU16, "1 2", 50257);
  check(DType::kU16, raw<std::uint16_t>({3, 200}), 0, DType::kU8, "3 200", 201);
  check(DType::kU16, raw<std::uint16_t>({0, 65535}), 0, DType::kU16, "0 65535", 65536);
  check(DType::kU32, raw<std::uint32_t>({9, 65536}), 0, DType::kU32, "9 65536", 65537);
  check(DType::kU32, raw<std::uint32_t>({5, 2147483646}), 0, DType::kU32, "5 2147483646",
        2147483647);
  check(DType::kU16, gzip(raw<std::uint16_t>({300, 1})), 0, DType::kU16, "300 1", 301);
}

TEST(PrepareTokens, TextIds) {
  const TemporaryDirectory folder;
  std::string text, expected;
  for (int i = 0; i < 400000; ++i) {  // several blocks: numbers are cut at their borders
    text += fmt::format("{}{}", i % 70001, i % 7 == 0 ? "\r\n" : i % 3 == 0 ? "\t" : "  ");
    expected += fmt::format("{}{}", i > 0 ? " " : "", i % 70001);
  }
  write_file(folder.file("ids.txt"), text + "70005");
  PrepareRequest request = request_for(folder, DatasetKind::kTokens, {folder.file("ids.txt")});
  request.format.text_ids = true;
  prepare(request);
  const TokenDataset dataset = TokenDataset::open(request.output);
  EXPECT_TRUE(documents_of(dataset)[0] == expected + " 70005");
  EXPECT_EQ(dataset.facts().vocabulary, 70006);
  dataset.verify();
}

TEST(PrepareTokens, BadIdsAreExplained) {
  const TemporaryDirectory folder;
  PrepareRequest request = request_for(folder, DatasetKind::kTokens, {folder.file("ids")});
  const auto message_for = [&](const std::string& bytes) {
    write_file(folder.file("ids"), bytes);
    const std::string message = error_of([&] { prepare(request); }, ExitStatus::kDamaged);
    expect_nothing_left(request);
    return message;
  };
  EXPECT_TRUE(contains(message_for("abc"), "not a whole number of u16 ids"));
  request.vocabulary = 100;
  const std::string above = message_for(raw<std::uint16_t>({5, 99, 100, 101}));
  EXPECT_TRUE(contains(above, "token 2 has the id 100, not below --vocabulary 100")) << above;
  request.vocabulary = 0;
  request.format.id_dtype = DType::kU32;
  EXPECT_TRUE(contains(message_for(raw<std::uint32_t>({1, 0xffffffffu})), "4294967295"));
  request.format.text_ids = true;
  const std::string word = message_for("1 2\n3 x4 5\n");
  EXPECT_TRUE(contains(word, "line 2: 'x4' is not a token id")) << word;
  EXPECT_TRUE(contains(message_for("1 -2"), "'-2'"));
  EXPECT_TRUE(contains(message_for("1 99999999999"), "'99999999999'"));
}

TEST(PrepareSplit, ValidationIsWholeDocumentsAtTheEnd) {
  const TemporaryDirectory folder;
  fs::create_directory(folder.file("in"));
  Texts texts;
  for (int i = 0; i < 200; ++i) {
    texts.push_back(fmt::format("document {}{:.>{}}", i, "", i % 13));
    write_file(folder.file("in/" + std::to_string(1000 + i)), texts.back());
  }
  PrepareRequest request = request_for(folder, DatasetKind::kText, {folder.file("in")});
  request.validation = 0.1;
  prepare(request);
  const TokenDataset dataset = TokenDataset::open(request.output);
  const Texts documents = documents_of(dataset);
  const auto border = documents.begin() + dataset.facts().train_documents;
  const double share = static_cast<double>(dataset.split_tokens(Split::kValid)) /
                       static_cast<double>(dataset.facts().tokens);
  EXPECT_LE(share, 0.1);
  EXPECT_GT(share, 0.09);
  // Each split keeps the order of the input, together they are the input, and validation is spread
  // over it.
  const auto number = [&](const std::string& text) {
    return std::find(texts.begin(), texts.end(), text) - texts.begin();
  };
  const auto before = [&](const std::string& a, const std::string& b) {
    return number(a) < number(b);
  };
  EXPECT_TRUE(std::is_sorted(documents.begin(), border, before));
  EXPECT_TRUE(std::is_sorted(border, documents.end(), before));
  Texts sorted = documents;
  std::sort(sorted.begin(), sorted.end(), before);
  EXPECT_EQ(sorted, texts);
  EXPECT_LT(number(*border), 70);
  EXPECT_GT(number(documents.back()), 130);
}

TEST(PrepareSplit, Choice) {
  using Chosen = std::vector<bool>;
  const std::vector<std::uint64_t> hashes = {50, 10, 40, 20};
  EXPECT_EQ(choose_validation({10, 10, 10, 10}, hashes, 0.5), (Chosen{false, true, false, true}));
  EXPECT_EQ(choose_validation({10, 10, 10, 10}, hashes, 0), (Chosen{false, false, false, false}));
  // Too long for the share: passed over. Nothing fits: the shortest, so that there is something to
  // validate on.
  EXPECT_EQ(choose_validation({10, 100, 10, 10}, hashes, 0.1), (Chosen{false, false, false, true}));
  EXPECT_EQ(choose_validation({50, 60, 40, 70}, hashes, 0.01), (Chosen{false, false, true, false}));
  EXPECT_EQ(choose_validation({1, 1}, {2, 1}, 0.99), (Chosen{false, true}));
  EXPECT_EQ(choose_validation({100}, {1}, 0.5), Chosen{false});
}

TEST(PrepareSplit, TheTailOfASingleDocumentValidates) {
  const TemporaryDirectory folder;
  write_file(folder.file("a"), "0123456789");
  PrepareRequest request = request_for(folder, DatasetKind::kText, {folder.file("a")});
  request.validation = 0.3;
  EXPECT_TRUE(prepare(request).tail_split);
  EXPECT_EQ(documents_of(TokenDataset::open(request.output)), (Texts{"0123456", "789"}));
  EXPECT_EQ(TokenDataset::open(request.output).facts().train_documents, 1);
  request.replace = true;
  request.validation = 0.01;
  prepare(request);
  EXPECT_EQ(documents_of(TokenDataset::open(request.output)), (Texts{"012345678", "9"}));
  write_file(folder.file("a"), "0");
  EXPECT_FALSE(prepare(request).tail_split);
}

TEST(Prepare, StopsAtTheLimit) {
  const TemporaryDirectory folder;
  for (const char* name : {"a", "b", "c"}) write_file(folder.file(name), std::string(10, *name));
  PrepareRequest request = request_for(folder, DatasetKind::kText,
                                       {folder.file("a"), folder.file("b"), folder.file("c")});
  request.replace = true;
  const auto documents_with = [&](std::int64_t limit) {
    request.max_tokens = limit;
    EXPECT_EQ(prepare(request).capped, limit < 30);
    return documents_of(TokenDataset::open(request.output));
  };
  const std::string a(10, 'a'), b(10, 'b'), c(10, 'c');
  EXPECT_EQ(documents_with(15), (Texts{a, "bbbbb"}));
  EXPECT_EQ(documents_with(20), (Texts{a, b}));
  EXPECT_EQ(documents_with(1), Texts{"a"});
  EXPECT_EQ(documents_with(30), (Texts{a, b, c}));
  EXPECT_EQ(documents_with(1000), (Texts{a, b, c}));

  write_file(folder.file("x.fa"), ">r1\nACGT\n>r2\nTTTT\n>r3\nGG\n");
  request.format.kind = DatasetKind::kGenome;
  request.inputs = {folder.file("x.fa")};
  request.max_tokens = 6;
  EXPECT_TRUE(prepare(request).capped);
  EXPECT_EQ(documents_of(TokenDataset::open(request.output)), (Texts{"ACGT", "TT"}));
}

TEST(Prepare, TheSameInputGivesTheSameFile) {
  const TemporaryDirectory folder;
  fs::create_directory(folder.file("in"));
  for (int i = 0; i < 30; ++i)
    write_file(folder.file("in/" + std::to_string(i)),
               std::string(static_cast<std::size_t>(i + 1), static_cast<char>('a' + i % 26)));
  PrepareRequest request = request_for(folder, DatasetKind::kText, {folder.file("in")});
  request.validation = 0.2;
  const std::string uuid = prepare(request).facts.uuid;
  const std::string first = read_file(request.output);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // no times in the file either
  request.output = folder.file("again.h5");
  EXPECT_EQ(prepare(request).facts.uuid, uuid);
  EXPECT_TRUE(read_file(request.output) == first);
  EXPECT_EQ(uuid.size(), 36u);
  EXPECT_EQ(uuid[14], '8');

  request.replace = true;
  request.validation = 0.5;
  EXPECT_NE(prepare(request).facts.uuid, uuid);
  request.validation = 0.2;
  write_file(folder.file("in/7"), "changed!");
  EXPECT_NE(prepare(request).facts.uuid, uuid);
}

TEST(Prepare, RefusesWhatMakesNoSense) {
  const TemporaryDirectory folder;
  write_file(folder.file("a"), "text");
  write_file(folder.file("empty"), "");
  const PrepareRequest good = request_for(folder, DatasetKind::kText, {folder.file("a")});
  const auto message_with = [&](auto&& change) {
    PrepareRequest request = good;
    change(request);
    return error_of([&] { prepare(request); }, ExitStatus::kUsage);
  };
  EXPECT_TRUE(contains(message_with([](auto& r) { r.validation = 1; }), "--validation"));
  EXPECT_TRUE(contains(message_with([](auto& r) { r.validation = -0.1; }), "--validation"));
  EXPECT_TRUE(contains(message_with([](auto& r) { r.max_tokens = -1; }), "--max-bytes"));
  EXPECT_TRUE(contains(message_with([](auto& r) { r.vocabulary = std::int64_t{1} << 40; }),
                       "--vocabulary"));
  EXPECT_TRUE(contains(message_with([](auto& r) { r.inputs = {}; }), "no input"));
  EXPECT_TRUE(
      contains(message_with([&](auto& r) { r.inputs = {folder.file("empty")}; }), "1 empty"));
  EXPECT_TRUE(
      contains(message_with([&](auto& r) { r.inputs = {folder.file("none")}; }), "no such file"));
  EXPECT_TRUE(contains(message_with([&](auto& r) { r.output = folder.path(); }), "is a folder"));
  expect_nothing_left(good);

  prepare(good);
  const std::string before = read_file(good.output);
  EXPECT_TRUE(contains(message_with([](auto&) {}), "--force"));
  EXPECT_TRUE(contains(message_with([&](auto& r) {
                         r.inputs = {good.output};
                         r.replace = true;
                       }),
                       "both input and output"));
  EXPECT_TRUE(read_file(good.output) == before);
  PrepareRequest nowhere = good;
  nowhere.output = folder.file("no/such/folder/d.h5");
  EXPECT_TRUE(contains(error_of([&] { prepare(nowhere); }, ExitStatus::kFailed), "does not exist"));
}

TEST(Prepare, AFullDiskIsOneLineAndLeavesNothing) {
  const TemporaryDirectory folder;
  write_file(folder.file("sparse"), "x");
  const auto needed =
      static_cast<std::int64_t>(fs::space(folder.path()).available) + (std::int64_t{1} << 30);
  std::error_code refused;
  fs::resize_file(folder.file("sparse"), static_cast<std::uintmax_t>(needed), refused);
  if (refused)
    GTEST_SKIP() << "no sparse file of " << needed << " bytes here: " << refused.message();
  const PrepareRequest request = request_for(folder, DatasetKind::kText, {folder.file("sparse")});
  const std::string message = error_of([&] { prepare(request); }, ExitStatus::kFailed);
  for (const char* part : {"No space left", "needs", "available", "--max-bytes"})
    EXPECT_TRUE(contains(message, part)) << message;
  expect_nothing_left(request);
}

TEST(Prepare, StoppingRemovesWhatWasWritten) {
  const TemporaryDirectory folder;
  write_file(folder.file("a"), std::string(3 << 20, 'a'));
  const PrepareRequest request = request_for(folder, DatasetKind::kText, {folder.file("a")});
  bool partial_seen = false;
  const auto stop = [&](const char* phase, std::int64_t done, std::int64_t total) {
    EXPECT_LE(done, total);
    if (std::string(phase) != "writing") return;
    partial_seen = fs::exists(request.output + ".partial");
    fail("stopped");
  };
  EXPECT_TRUE(
      contains(error_of([&] { prepare_dataset(request, stop); }, ExitStatus::kFailed), "stopped"));
  EXPECT_TRUE(partial_seen);
  expect_nothing_left(request);
  write_file(request.output + ".partial", "left by a run that was killed");
  const auto stop_early = [](const char*, std::int64_t, std::int64_t) { fail("stopped"); };
  error_of([&] { prepare_dataset(request, stop_early); }, ExitStatus::kFailed);
  expect_nothing_left(request);
  write_file(request.output + ".partial", "left by a run that was killed");
  prepare(request);
  EXPECT_FALSE(fs::exists(request.output + ".partial"));
}

TEST(Prepare, InputThatChangesIsNoticed) {
  const TemporaryDirectory folder;
  for (const std::string& later : {std::string("longer than before"), std::string("s")}) {
    write_file(folder.file("a"), "at first");
    const PrepareRequest request = request_for(folder, DatasetKind::kText, {folder.file("a")});
    const auto change = [&](const char* phase, std::int64_t, std::int64_t) {
      if (std::string(phase) == "counting") write_file(folder.file("a"), later);
    };
    EXPECT_TRUE(contains(error_of([&] { prepare_dataset(request, change); }, ExitStatus::kFailed),
                         "changed while it was read"));
    expect_nothing_left(request);
  }
}

TEST(DatasetWriter, CountsMustMatch) {
  const TemporaryDirectory folder;
  DatasetFacts facts;
  facts.tokenizer = R"({"kind":"ids"})";
  facts.tokens = 5;
  facts.vocabulary = 10;
  facts.document_offsets = {0, 3, 5};
  facts.train_documents = 1;
  const std::uint8_t ids[] = {1, 2, 3, 4};
  DatasetWriter writer(folder.file("d.h5"), facts);
  writer.append(Split::kValid, {ids, DType::kU8, 1});
  writer.append(Split::kTrain, {ids, DType::kU8, 3});
  error_of([&] { writer.append(Split::kTrain, {ids, DType::kU8, 1}); }, ExitStatus::kFailed);
  error_of([&] { writer.finish(); }, ExitStatus::kFailed);
  writer.append(Split::kValid, {ids + 3, DType::kU8, 1});
  writer.finish();
  EXPECT_EQ(all_tokens(TokenDataset::open(folder.file("d.h5"))),
            (std::vector<std::int32_t>{1, 2, 3, 1, 4}));
}

}  // namespace
}  // namespace longspan::io
