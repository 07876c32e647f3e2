// timeout: 120
/// Datasets to token files of NumPy, llm.c and Megatron and back: other programs' files by the
/// letter of their formats, ours as NumPy itself reads them, and files that lie.
#include "launcher/convert_dataset.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/token_files.hpp"
#include "tests/io/dataset_fixture.hpp"
#include "tests/support/process.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;
using io::all_tokens;
using io::contains;
using io::error_of;
using io::read_file;
using io::TokenDataset;
using io::write_file;

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
template <class T>
std::string raw(T value) {
  return raw(std::vector<T>{value});
}

class ConvertDataset : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_.file(name); }

  void convert(std::vector<std::string> words) const {
    words[0] = path(words[0]);
    words[1] = path(words[1]);
    auto flags = dataset_conversion_flags();
    flags.push_back({"force", "", "overwrite"});
    flags.push_back({"json", "", "as JSON"});
    EXPECT_TRUE(is_dataset_conversion(words[0])) << words[0];
    EXPECT_EQ(convert_dataset(Arguments(words, "convert", "test", flags, "")), ExitStatus::kDone);
    for (const auto& entry : fs::directory_iterator(folder_.path()))
      EXPECT_FALSE(contains(entry.path().string(), ".partial")) << entry.path();
  }
  std::string damage(std::vector<std::string> words) const {
    return error_of([&] { convert(std::move(words)); }, ExitStatus::kDamaged);
  }
  std::string usage(std::vector<std::string> words) const {
    return error_of([&] { convert(std::move(words)); }, ExitStatus::kUsage);
  }

  /// Documents of 700, 0.3 million and 1 token and so on, ids below `vocabulary`.
  TokenDataset dataset(const std::string& name, std::uint32_t vocabulary) const {
    fs::create_directories(path("in"));
    std::uint32_t next = 1;
    int number = 0;
    for (const int tokens : {700, 300'000, 1, 12'345, 9, 40'000, 5, 77}) {
      std::string text;
      for (int i = 0; i < tokens; ++i) {
        next = next * 1664525U + 1013904223U;
        text += std::to_string((next >> 8) % vocabulary) + " ";
      }
      text += std::to_string(vocabulary - 1);
      write_file(path("in/" + std::to_string(number++)), text);
    }
    io::PrepareRequest request;
    request.format = {.kind = io::DatasetKind::kTokens, .text_ids = true};
    request.inputs = {path("in")};
    request.output = path(name);
    request.replace = true;
    io::prepare(request);
    return TokenDataset::open(path(name));
  }
  /// True if numpy, asked by `condition` over `tokens` and `file(name)`, says so.
  void numpy(const std::string& program) const {
    const std::string python = LONGSPAN_SOURCE_DIR "/.venv-tests/bin/python";
    if (!fs::exists(python))
      GTEST_SKIP() << "no " << python << ": tests/support/python_environment.sh";
    const auto r = testing_support::run_process(
        {python, "-c", "import numpy, struct, os\nos.chdir('" + folder_.path() + "')\n" + program});
    EXPECT_EQ(r.status, 0) << r.err;
  }

  testing_support::TemporaryDirectory folder_;
};

TEST_F(ConvertDataset, NumpyBothWays) {
  for (const std::uint32_t vocabulary : {256U, 50257U, 128256U}) {
    const TokenDataset data = dataset("d.h5", vocabulary);
    convert({"d.h5", "out.npy", "--force"});
    write_file(path("expected"), raw(all_tokens(data)));
    numpy(
        "a = numpy.load('out.npy')\n"
        "assert a.ndim == 1 and a.dtype.kind == 'u' and a.dtype.itemsize == " +
        std::to_string(vocabulary == 256    ? 1
                       : vocabulary < 65536 ? 2
                                            : 4) +
        "\nassert numpy.array_equal(a, numpy.fromfile('expected', '<i4'))\n"
        "assert os.path.getsize('out.npy') % 64 == a.nbytes % 64\n"
        "for t in ('<i8', '<i4', '<u4', '<u8'): numpy.save('in' + t[1:], a.astype(t))");
    if (IsSkipped()) return;
    for (const char* file : {"out.npy", "ini8.npy", "ini4.npy", "inu4.npy", "inu8.npy"}) {
      convert({file, "back.h5", "--force", "--validation", "0"});
      EXPECT_EQ(all_tokens(TokenDataset::open(path("back.h5"))), all_tokens(data)) << file;
    }
  }
}

TEST_F(ConvertDataset, MegatronKeepsDocumentsAndTheirSplit) {
  for (const std::uint32_t vocabulary : {200U, 50257U, 128256U}) {
    const TokenDataset data = dataset("d.h5", vocabulary);
    convert({"d.h5", "out.bin", "--format", "megatron", "--force"});
    write_file(path("expected"), raw(all_tokens(data)));
    write_file(path("offsets"), raw(data.facts().document_offsets));
    // As the format is defined: header, version, type, counts, lengths, pointers, borders.
    numpy(
        "b = open('out.idx', 'rb').read()\n"
        "assert b[:9] == b'MMIDIDX\\0\\0'\n"
        "version, code, sequences, borders = struct.unpack('<QBQQ', b[9:34])\n"
        "t = {1: 'u1', 8: '<u2', 4: '<i4'}[code]\n"
        "assert version == 1 and borders == sequences + 1\n"
        "lengths = numpy.frombuffer(b, '<i4', sequences, 34)\n"
        "pointers = numpy.frombuffer(b, '<i8', sequences, 34 + 4 * sequences)\n"
        "ends = numpy.frombuffer(b, '<i8', borders, 34 + 12 * sequences)\n"
        "assert len(b) == 34 + 12 * sequences + 8 * borders\n"
        "a = numpy.fromfile('out.bin', t)\n"
        "offsets = numpy.fromfile('offsets', '<u8').astype('i8')\n"
        "assert numpy.array_equal(a, numpy.fromfile('expected', '<i4'))\n"
        "assert numpy.array_equal(lengths, numpy.diff(offsets))\n"
        "assert numpy.array_equal(pointers, offsets[:-1] * a.itemsize)\n"
        "assert numpy.array_equal(ends, numpy.arange(borders))");
    const auto valid = static_cast<std::int64_t>(data.facts().document_offsets.size()) - 1 -
                       data.facts().train_documents;
    ASSERT_GT(valid, 0);
    for (const char* half : {"out.bin", "out.idx"}) {
      convert({half, "back.h5", "--force", "--valid-documents", std::to_string(valid),
               "--vocabulary", std::to_string(vocabulary)});
      const TokenDataset back = TokenDataset::open(path("back.h5"));
      EXPECT_EQ(all_tokens(back), all_tokens(data));
      EXPECT_EQ(back.facts().document_offsets, data.facts().document_offsets);
      EXPECT_EQ(back.facts().train_documents, data.facts().train_documents);
      EXPECT_EQ(back.facts().uuid, data.facts().uuid);
    }
  }
}

/// A pair by hand: documents of several sequences, an empty one, modes behind.
std::string megatron(int code, const std::vector<std::int32_t>& lengths,
                     const std::vector<std::int64_t>& borders, std::int64_t width,
                     const std::string& modes = "") {
  std::vector<std::int64_t> pointers;
  std::int64_t at = 0;
  for (const std::int32_t length : lengths) {
    pointers.push_back(at);
    at += length * width;
  }
  return std::string("MMIDIDX\0\0", 9) + raw<std::uint64_t>(1) +
         std::string(1, static_cast<char>(code)) + raw<std::uint64_t>(lengths.size()) +
         raw<std::uint64_t>(borders.size()) + raw(lengths) + raw(pointers) + raw(borders) + modes;
}

TEST_F(ConvertDataset, MegatronByHand) {
  const std::vector<std::int32_t> lengths = {2, 3, 0, 1, 4};
  const std::vector<std::int64_t> borders = {0, 2, 3, 5};  // [0 1] [2] [3 4]: 5, 0 and 5 tokens
  const auto check = [&](int code, const std::string& tokens, std::int64_t width) {
    write_file(path("m.bin"), tokens);
    for (const char* modes : {"", "\1\1\1\1\1"}) {
      write_file(path("m.idx"), megatron(code, lengths, borders, width, modes));
      convert({"m.bin", "m.h5", "--force", "--validation", "0"});
      const TokenDataset data = TokenDataset::open(path("m.h5"));
      EXPECT_EQ(all_tokens(data), (std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
      EXPECT_EQ(data.facts().document_offsets, (std::vector<std::uint64_t>{0, 5, 10}));
    }
  };
  check(1, raw(std::vector<std::uint8_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 1);
  check(2, raw(std::vector<std::int8_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 1);
  check(3, raw(std::vector<std::int16_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 2);
  check(4, raw(std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 4);
  check(5, raw(std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 8);
  check(8, raw(std::vector<std::uint16_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 2);
}

std::string llmc(std::int32_t magic, std::int32_t version, std::int32_t tokens,
                 const std::string& data) {
  std::string file = raw(std::vector<std::int32_t>{magic, version, tokens});
  file.resize(1024, '\0');
  return file + data;
}

TEST_F(ConvertDataset, LlmcBothWays) {
  const std::vector<std::uint16_t> ids = {50256, 1, 2, 50256, 3, 50256, 4, 5, 6};
  write_file(path("in.bin"), llmc(20240520, 1, 9, raw(ids)));
  // It puts its end-of-text in front of every document.
  convert({"in.bin", "d.h5", "--document-start", "50256", "--valid-documents", "1"});
  const TokenDataset data = TokenDataset::open(path("d.h5"));
  EXPECT_EQ(data.facts().document_offsets, (std::vector<std::uint64_t>{0, 3, 5, 9}));
  EXPECT_EQ(data.facts().train_documents, 2);
  convert({"d.h5", "out.bin", "--format", "llmc"});
  EXPECT_EQ(read_file(path("out.bin")), read_file(path("in.bin")));
  convert({"in.bin", "e.h5", "--document-end", "50256", "--validation", "0"});
  EXPECT_EQ(TokenDataset::open(path("e.h5")).facts().document_offsets,
            (std::vector<std::uint64_t>{0, 1, 4, 6, 9}));
  // More than 16 bits: llm.c's other magic, version and type.
  const std::vector<std::uint32_t> wide = {128000, 1, 2};
  write_file(path("wide.bin"), llmc(20240801, 7, 3, raw(wide)));
  convert({"wide.bin", "wide.h5", "--validation", "0"});
  convert({"wide.h5", "wide-out.bin", "--format", "llmc"});
  EXPECT_EQ(read_file(path("wide-out.bin")), read_file(path("wide.bin")));
}

TEST_F(ConvertDataset, RawIdsAndSplits) {
  const TokenDataset data = dataset("d.h5", 300);
  const auto tokens = all_tokens(data);
  convert({"d.h5", "out.bin"});
  EXPECT_EQ(read_file(path("out.bin")),
            raw(std::vector<std::uint16_t>(tokens.begin(), tokens.end())));
  convert({"d.h5", "out.bin", "--dtype", "u32", "--force"});
  EXPECT_EQ(read_file(path("out.bin")), raw(tokens));
  convert({"out.bin", "back.h5", "--dtype", "u32", "--validation", "0"});
  EXPECT_EQ(all_tokens(TokenDataset::open(path("back.h5"))), tokens);
  const auto train = tokens.begin() + data.split_tokens(io::Split::kTrain);
  convert({"d.h5", "train.bin", "--split", "train"});
  EXPECT_EQ(read_file(path("train.bin")), raw(std::vector<std::uint16_t>(tokens.begin(), train)));
  convert({"d.h5", "valid.bin", "--split", "valid"});
  EXPECT_EQ(read_file(path("valid.bin")), raw(std::vector<std::uint16_t>(train, tokens.end())));
}

TEST_F(ConvertDataset, PrepareReadsThemToo) {
  const std::vector<std::uint16_t> ids = {7, 8, 9};
  fs::create_directories(path("in"));
  write_file(path("in/a.bin"), raw(ids));
  write_file(path("in/a.idx"), megatron(8, {1, 2}, {0, 1, 2}, 2));
  write_file(path("in/b.bin"), llmc(20240520, 1, 3, raw(ids)));
  const auto r = testing_support::longspan(
      {"prepare", "--kind", "tokens", "--validation", "0", "--output", path("d.h5"), path("in")});
  ASSERT_EQ(r.status, 0) << r.err;
  const TokenDataset data = TokenDataset::open(path("d.h5"));
  EXPECT_EQ(all_tokens(data), (std::vector<std::int32_t>{7, 8, 9, 7, 8, 9}));
  EXPECT_EQ(data.facts().document_offsets, (std::vector<std::uint64_t>{0, 1, 3, 6}));
  write_file(path("in/c.bin"), raw(ids));
  const auto refused = testing_support::longspan(
      {"prepare", "--kind", "tokens", "--output", path("e.h5"), path("in")});
  EXPECT_EQ(refused.status, 2);
  EXPECT_TRUE(contains(refused.err, "give --dtype")) << refused.err;
}

TEST_F(ConvertDataset, UsageIsExplained) {
  dataset("d.h5", 300);
  write_file(path("x.bin"), "abcd");
  EXPECT_TRUE(contains(usage({"x.bin", "x.h5"}), "give --dtype"));
  EXPECT_TRUE(contains(usage({"d.h5", "out.bin", "--dtype", "u8"}), "cannot hold the vocabulary"));
  EXPECT_TRUE(contains(usage({"d.h5", "out.bin", "--format", "npy"}), "does not go with the name"));
  EXPECT_TRUE(contains(usage({"d.h5", "out.bin", "--format", "hdf"}), "expected raw, npy, llmc"));
  EXPECT_TRUE(
      contains(usage({"d.h5", "out.npy", "--vocabulary", "7"}), "--vocabulary is for making"));
  EXPECT_TRUE(
      contains(usage({"x.bin", "x.h5", "--dtype", "u8", "--split", "train"}), "--split is for"));
  EXPECT_TRUE(contains(usage({"x.bin", "x.npy", "--dtype", "u8"}), "not a dataset"));
  EXPECT_TRUE(contains(usage({"x.bin", "x.h5", "--dtype", "u8", "--valid-documents", "2"}),
                       "--valid-documents 2: the input has 1"));
  convert({"d.h5", "out.npy"});
  EXPECT_TRUE(contains(usage({"d.h5", "out.npy"}), "exists already"));
}

TEST_F(ConvertDataset, FilesThatLie) {
  const auto npy = [](const std::string& dictionary, const std::string& data, char version = 1) {
    const auto length = static_cast<std::uint16_t>(dictionary.size());
    return std::string("\x93NUMPY") + version + '\0' +
           (version == 1 ? raw(length) : raw<std::uint32_t>(length)) + dictionary + data;
  };
  const auto header = [](const std::string& type, const std::string& shape) {
    return "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }";
  };
  const auto expect = [&](const std::string& name, const std::string& bytes, const char* part) {
    write_file(path(name), bytes);
    const std::string message = damage({name, "x.h5"});
    EXPECT_TRUE(contains(message, part)) << message << "\nexpected: " << part;
    EXPECT_FALSE(fs::exists(path("x.h5")));
  };
  expect("a.npy", npy(header("<u2", "(2,)"), "abc"), "claims 2 tokens of 2 bytes");
  expect("a.npy", npy(header("<u2", "(9223372036854775807,)"), ""), "claims 9223372036854775807");
  expect("a.npy", npy(header("<u2", "(9223372036854775808,)"), ""), "not understood");
  expect("a.npy", npy(header("<u2", "(-1,)"), ""), "not understood");
  expect("a.npy", npy(header("<u2", "(2, 2)"), "abcdefgh"), "2 dims");
  expect("a.npy", npy(header("<u2", "()"), "ab"), "0 dims");
  expect("a.npy", npy(header(">u2", "(1,)"), "ab"), "NumPy type '>u2'");
  expect("a.npy", npy(header("<f4", "(1,)"), "abcd"), "NumPy type '<f4'");
  expect("a.npy", npy(header("|O", "(1,)"), "abcd"), "NumPy type '|O'");
  expect("a.npy", npy("{'descr': [('x', '<u2')]}", ""), "not understood");
  expect("a.npy", npy(header("<u2", "(1,)") + "\n{}", "ab"), "not understood");
  expect("a.npy", npy(header("<u2", "(1,)"), "ab", 9), "version 9.0");
  expect("a.npy", std::string("\x93NUMPY\x02\x00", 8) + raw<std::uint32_t>(1U << 30) + "{",
         "a NumPy header of 1073741824 bytes");
  expect("a.npy", std::string("\x93NUMPY\x01\x00", 8) + raw<std::uint16_t>(500) + "{", "cut off");
  expect("a.npy", npy(header("<i2", "(2,)"), raw(std::vector<std::int16_t>{3, -1})),
         "token 1 has the id -1");
  expect("a.npy", npy(header("<u8", "(1,)"), raw<std::uint64_t>(1ULL << 63)),
         "token 0 has the id 9223372036854775808");

  const std::string two = raw(std::vector<std::uint16_t>{1, 2});
  expect("b.bin", llmc(20240520, 1, 3, two), "claims 3 tokens of 2 bytes");
  expect("b.bin", llmc(20240520, 1, 1, two), "claims 1 tokens of 2 bytes");
  expect("b.bin", llmc(20240520, 1, -2, two), "claims -2 tokens");
  expect("b.bin", llmc(20240520, 2, 2, two), "of version 2, this program reads version 1");
  expect("b.bin", llmc(20240801, 1, 1, two), "of version 1, this program reads version 7");
  expect("b.bin", llmc(20240520, 1, 2, two).substr(0, 900), "too short");

  const auto pair = [&](const std::string& idx, const std::string& bin, const char* part) {
    write_file(path("c.idx"), idx);
    expect("c.bin", bin, part);
  };
  const std::string good = megatron(8, {1, 1}, {0, 1, 2}, 2);
  const auto with = [&](std::size_t at, const std::string& bytes) {
    std::string changed = good;
    return changed.replace(at, bytes.size(), bytes);
  };
  pair(with(0, "MMIDIDY"), two, "MMIDIDX");
  pair(with(9, raw<std::uint64_t>(2)), two, "index version 2, this program reads version 1");
  pair(with(17, "\7"), two, "Megatron's type 7");
  pair(with(17, "\xff"), two, "Megatron's type 255");
  pair(with(18, raw<std::uint64_t>(1'000'000'000)), two, "claims 1000000000 sequences");
  pair(with(18, raw<std::uint64_t>(~0ULL)), two, "claims 18446744073709551615 sequences");
  pair(with(26, raw<std::uint64_t>(1ULL << 61)), two, "document borders");
  pair(good.substr(0, 20), two, "MMIDIDX");
  pair(good.substr(0, good.size() - 1), two, "damaged or cut off");
  pair(with(34, raw<std::int32_t>(-1)), two, "sequence 0 has -1 tokens");
  pair(with(34, raw<std::int32_t>(0x7fffffff)), two, "sequence 0 has 2147483647 tokens");
  pair(with(42, raw<std::int64_t>(-2)), two, "at byte -2");
  pair(with(50, raw<std::int64_t>(1LL << 62)), two, "expected them at byte 2");
  pair(with(58, raw<std::int64_t>(1)), two, "document border 0 is 1");
  pair(with(66, raw<std::int64_t>(3)), two, "document border 1 is 3");
  pair(with(66, raw<std::int64_t>(-1)), two, "document border 1 is -1");
  pair(with(74, raw<std::int64_t>(1)), two, "borders end with sequence 1");
  pair(good, two + two, "hold 2 tokens of 2 bytes, the .bin has 8 bytes");
  pair(good, two.substr(0, 2), "inside the 2 bytes");
}

}  // namespace
}  // namespace longspan::launcher
