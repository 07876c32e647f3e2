// timeout: 120
/// Files that lie. Each is one that HDF5 itself finds in order, with the hashes a forger would
/// give it: the program says in one line what is wrong, and asks for no memory on its behalf.
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <functional>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/dataset_layout.hpp"
#include "io/hdf5.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/io/dataset_fixture.hpp"

namespace longspan::io {
namespace {

namespace fs = std::filesystem;
using testing_support::TemporaryDirectory;
using Rows = std::vector<std::uint64_t>;

std::int64_t peak_kilobytes() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

/// An HDF5 file, opened to be spoiled.
class Spoiled {
 public:
  explicit Spoiled(const std::string& path)
      : file_(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT)) {
    EXPECT_GE(file_, 0);
  }
  Spoiled(const Spoiled&) = delete;
  Spoiled& operator=(const Spoiled&) = delete;
  ~Spoiled() { H5Fclose(file_); }

  hid_t file() const { return file_; }
  void remove(const char* name) { H5Ldelete(file_, name, H5P_DEFAULT); }

  /// `change` gets the creation properties and the extents, and may alter both.
  using Layout = std::function<void(hid_t properties)>;
  void replace(const char* name, hid_t type, std::vector<hsize_t> dims, const void* data,
               const Layout& layout = {}) {
    remove(name);
    const hid_t space = H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    if (layout) layout(properties);
    const hid_t made = H5Dcreate2(file_, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    ASSERT_GE(made, 0) << name;
    if (data != nullptr) {
      ASSERT_GE(H5Dwrite(made, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), 0);
    }
    H5Dclose(made);
    H5Pclose(properties);
    H5Sclose(space);
  }
  void rows(const char* name, const Rows& values) {
    replace(name, H5T_STD_U64LE, {values.size()}, values.data());
  }
  void strings(const char* name, const std::vector<std::string>& values) {
    std::size_t length = 1;
    for (const auto& value : values) length = std::max(length, value.size());
    std::string packed;
    for (std::string value : values) {
      value.resize(length);
      packed += value;
    }
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, length);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    replace(name, type, {values.size()}, packed.data());
    H5Tclose(type);
  }
  void number(const char* object, const char* name, std::int64_t value) {
    H5Adelete_by_name(file_, object, name, H5P_DEFAULT);
    const hid_t owner = H5Oopen(file_, object, H5P_DEFAULT), space = H5Screate(H5S_SCALAR);
    const hid_t made = H5Acreate2(owner, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    EXPECT_GE(H5Awrite(made, H5T_NATIVE_INT64, &value), 0);
    H5Aclose(made);
    H5Sclose(space);
    H5Oclose(owner);
  }
  void text(const char* object, const char* name, const std::string& value) {
    H5Adelete_by_name(file_, object, name, H5P_DEFAULT);
    const hid_t owner = H5Oopen(file_, object, H5P_DEFAULT), space = H5Screate(H5S_SCALAR);
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, value.size());
    const hid_t made = H5Acreate2(owner, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    EXPECT_GE(H5Awrite(made, type, value.data()), 0);
    H5Aclose(made);
    H5Tclose(type);
    H5Sclose(space);
    H5Oclose(owner);
  }

 private:
  hid_t file_;
};

/// HDF5 lets chunked datasets alone claim more than a file can hold.
void in_chunks(hid_t properties) {
  const hsize_t chunk = 1 << 20;
  H5Pset_chunk(properties, 1, &chunk);
}

/// Every way to store a table that is not a plain run of bytes in the file, and what is said.
struct Storage {
  const char* what;
  std::function<void(Spoiled&, const char* name, hid_t type, hsize_t rows)> spoil;
};

const std::vector<Storage>& storages() {
  static const std::vector<Storage> all = {
      {"chunked or compressed",
       [](Spoiled& f, const char* name, hid_t type, hsize_t rows) {
         f.replace(name, type, {rows}, nullptr, [](hid_t p) {
           const hsize_t chunk = 1;
           H5Pset_chunk(p, 1, &chunk);
         });
       }},
      {"chunked or compressed",
       [](Spoiled& f, const char* name, hid_t type, hsize_t rows) {
         f.replace(name, type, {rows}, nullptr, [&](hid_t p) {
           H5Pset_chunk(p, 1, &rows);
           H5Pset_deflate(p, 6);
         });
       }},
      {"external",
       [](Spoiled& f, const char* name, hid_t type, hsize_t rows) {
         f.replace(name, type, {rows}, nullptr,
                   [](hid_t p) { H5Pset_external(p, "/etc/passwd", 0, H5F_UNLIMITED); });
       }},
      {"virtual",
       [](Spoiled& f, const char* name, hid_t type, hsize_t rows) {
         f.replace(name, type, {rows}, nullptr, [&](hid_t p) {
           const hid_t space = H5Screate_simple(1, &rows, nullptr);
           H5Pset_virtual(p, space, "other.h5", "x", space);
           H5Sclose(space);
         });
       }},
      {"does not lie inside the file",  // claimed, never written
       [](Spoiled& f, const char* name, hid_t type, hsize_t rows) {
         f.replace(name, type, {rows}, nullptr);
       }},
      {"soft or external link",
       [](Spoiled& f, const char* name, hid_t, hsize_t) {
         f.remove(name);
         H5Lcreate_soft("/tokenizer", f.file(), name, H5P_DEFAULT, H5P_DEFAULT);
       }},
      {"soft or external link",
       [](Spoiled& f, const char* name, hid_t, hsize_t) {
         f.remove(name);
         H5Lcreate_external("/etc/passwd", "/x", f.file(), name, H5P_DEFAULT, H5P_DEFAULT);
       }},
      {name_of(DType::kU64).data(),  // a group where a dataset is expected
       [](Spoiled& f, const char* name, hid_t, hsize_t) {
         f.remove(name);
         H5Gclose(H5Gcreate2(f.file(), name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
       }},
  };
  return all;
}

class HostileIndex : public ::testing::Test {
 protected:
  void SetUp() override {
    std::vector<testing::TestTensor> tensors;
    tensors.reserve(2);
    tensors.emplace_back("model/a", DType::kF32, Shape{4, 3}, 1);
    tensors.emplace_back("model/b", DType::kF32, Shape{5}, 2);
    folder_ = write_checkpoint(own_.path(), testing::arrays_of(tensors), testing::test_facts(3),
                               Communicator::self());
    good_ = read_file(folder_ + "/index.h5");
  }

  /// What the reader says of an index in which `change` was made; the hash is set right again.
  std::string said(const std::function<void(Spoiled&)>& change) {
    const std::string path = folder_ + "/index.h5";
    write_file(path, good_);
    {
      Spoiled file(path);
      change(file);
    }
    try {
      const std::uint64_t hash = manifest_hash(hdf5::File::open(path));
      Spoiled(path).rows("manifest/self_xxh3", {hash});
    } catch (const Error&) {  // not even the hash can be worked out: read_index says the same
    }
    const std::int64_t before = peak_kilobytes();
    const std::string message =
        error_of([&] { const CheckpointReader reader(folder_); }, ExitStatus::kDamaged);
    EXPECT_LT(peak_kilobytes() - before, 64 << 10) << message;
    EXPECT_TRUE(contains(message, path)) << message;
    EXPECT_FALSE(contains(message, "hash is")) << message;  // it is right: something else must tell
    return message;
  }
  void expect(const char* part, const std::function<void(Spoiled&)>& change) {
    const std::string message = said(change);
    EXPECT_TRUE(contains(message, part)) << message << "\nexpected: " << part;
  }

  TemporaryDirectory own_;
  std::string folder_, good_;
};

TEST_F(HostileIndex, TheGoodOneIsRead) {
  const CheckpointReader reader(folder_);
  EXPECT_EQ(reader.tensors().size(), 2U);
}

TEST_F(HostileIndex, AShardIsAFileOfItsFolder) {
  for (const char* name : {"../shard-00000-of-00001.h5", "/etc/passwd", "a/b.h5", "..", ".", "",
                           ".hidden", "a\nb.h5", "a\\b.h5", "\x1b[2J.h5"})
    expect("not the bare name of a file",
           [&](Spoiled& f) { f.strings("manifest/shard_file", {name}); });
  expect("lists 2 shards, its world_size is 1", [&](Spoiled& f) {
    f.strings("manifest/shard_file", {"a.h5", "b.h5"});
    f.rows("manifest/shard_bytes", {10000, 10000});
  });
  expect("the shard 'a.h5' twice", [&](Spoiled& f) {
    f.strings("manifest/shard_file", {"a.h5", "a.h5"});
    f.rows("manifest/shard_bytes", {100000, 100000});
    f.number("/", "world_size", 2);
  });
}

TEST_F(HostileIndex, NamesOfTensorsAreNames) {
  for (const char* name :
       {"", "/model/a", "model//a", "model/../a", "model/a@1", "a\nb", "\xff", "a/"})
    expect("not a name", [&](Spoiled& f) { f.strings("manifest/tensor_name", {name, "model/b"}); });
  expect("not a name", [&](Spoiled& f) {
    f.strings("manifest/tensor_name", {std::string(5000, 'a'), "model/b"});
  });
  expect("'model/b' twice", [&](Spoiled& f) {
    f.strings("manifest/tensor_name", {"model/b", "model/b"});
  });
  expect("unknown element type 'f31'", [&](Spoiled& f) {
    f.strings("manifest/tensor_dtype", {"f31", "f32"});
  });
}

TEST_F(HostileIndex, ShapesAndOffsetsFitTogether) {
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 63;
  const auto rows = [&](const char* part, const char* column, const Rows& values) {
    expect(part, [&](Spoiled& f) { f.rows((std::string("manifest/") + column).c_str(), values); });
  };
  rows("no file holds so much", "tensor_dims", {kHuge, 3, 5});
  rows("no file holds so much", "tensor_dims", {kHuge - 1, 3, 5});
  rows("no file holds so much", "tensor_dims", {1ULL << 32, 1ULL << 31, 5});
  rows("no file holds so much", "tensor_dims", {~0ULL, 3, 5});
  rows("unequal lengths", "tensor_dims", {4, 3});
  rows("unequal lengths", "tensor_dims", {4, 3, 5, 5});
  rows("at most 32", "tensor_dim_count", {~0ULL, 1});
  rows("at most 32", "tensor_dim_count", {1'000'000'000, 1});
  rows("unequal lengths", "tensor_dim_count", {2});
  rows("does not exist", "block_tensor", {2, 1});
  rows("does not exist", "block_shard", {0, 1});
  rows("does not exist", "block_shard", {0, ~0ULL});
  rows("unequal lengths", "block_xxh3", {1, 2, 3});
  rows("lies outside of 'model/a'", "block_offset_dims", {1, 0, 0});
  rows("lies outside of 'model/a'", "block_offset_dims", {~0ULL, 0, 0});
  rows("lies outside of 'model/a'", "block_offset_dims", {kHuge - 1, 0, 0});
  rows("lies outside of 'model/b'", "block_shape_dims", {4, 3, 6});
  rows("lies outside of 'model/b'", "block_shape_dims", {4, 3, ~0ULL});
  rows("hold 9 of the 12 elements of 'model/a'", "block_shape_dims", {3, 3, 5});
  rows("ends behind the", "block_file_offset", {1 << 30, 0});
  rows("ends behind the", "block_file_offset", {~0ULL, 0});
  rows("2^63 bytes", "shard_bytes", {kHuge});
  expect("both hold elements of 'model/a'", [&](Spoiled& f) {  // as many as there are, but not all
    f.rows("manifest/block_tensor", {0, 0, 1});
    f.rows("manifest/block_shard", {0, 0, 0});
    f.rows("manifest/block_file_offset", {0, 0, 0});
    f.rows("manifest/block_xxh3", {0, 0, 0});
    f.rows("manifest/block_offset_dims", {0, 0, 0, 0, 0});
    f.rows("manifest/block_shape_dims", {2, 3, 2, 3, 5});
  });
}

TEST_F(HostileIndex, ThousandMillionRowsAreOnlyClaimed) {
  for (const char* column :
       {"manifest/block_xxh3", "manifest/tensor_dims", "manifest/shard_bytes"}) {
    expect("at most 536.9 MB are read here",
           [&](Spoiled& f) { f.replace(column, H5T_STD_U64LE, {1'000'000'000}, nullptr); });
    expect("no file holds so much", [&](Spoiled& f) {
      f.replace(column, H5T_STD_U64LE, {hsize_t{1} << 62}, nullptr, in_chunks);
    });
    expect("does not lie inside the file",
           [&](Spoiled& f) { f.replace(column, H5T_STD_U64LE, {10'000'000}, nullptr); });
  }
  expect("at most 67.1 MB are read here", [&](Spoiled& f) {  // a text of 1 GB
    f.replace("config", H5T_STD_U8LE, {1'000'000'000}, nullptr);
  });
  expect("at most 536.9 MB are read here", [&](Spoiled& f) {
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, 1'000'000'000);
    f.replace("manifest/tensor_name", type, {2}, nullptr);
    H5Tclose(type);
  });
}

TEST_F(HostileIndex, TablesArePlain) {
  for (const char* name : {"manifest/block_shard", "manifest/tensor_name", "config"})
    for (const Storage& storage : storages()) {
      if (storage.what == std::string("u64")) continue;  // below, where the type is known
      expect(storage.what, [&](Spoiled& f) { storage.spoil(f, name, H5T_STD_U64LE, 2); });
    }
  expect("not strings", [&](Spoiled& f) { f.rows("manifest/tensor_name", {1, 2}); });
  expect("string", [&](Spoiled& f) { f.strings("manifest/block_xxh3", {"a", "b"}); });
  expect("variable", [&](Spoiled& f) {
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    const char* names[] = {"model/a", "model/b"};
    f.replace("manifest/tensor_name", type, {2}, names);
    H5Tclose(type);
  });
}

TEST_F(HostileIndex, AttributesAreInTheirRanges) {
  for (const char* name : {"step", "tokens_seen", "created_unix", "cursor_next_sample"})
    expect("not between 0 and", [&](Spoiled& f) { f.number("/", name, -1); });
  for (const char* name : {"mesh_data", "mesh_context", "mesh_tensor", "world_size"}) {
    expect("not between 1 and", [&](Spoiled& f) { f.number("/", name, 0); });
    expect("not between 1 and", [&](Spoiled& f) { f.number("/", name, (1LL << 32) + 1); });
  }
  expect("not between 0 and", [&](Spoiled& f) { f.number("/", "created_unix", 1LL << 62); });
  expect("holds string", [&](Spoiled& f) { f.text("/", "step", "3"); });
  expect("not the index", [&](Spoiled& f) { f.text("/", "format", "x\ny"); });
  for (const std::int64_t version : {std::int64_t{2}, std::int64_t{0}, std::int64_t{-1}})
    expect("this program reads version 1",
           [&](Spoiled& f) { f.number("/", "format_version", version); });
  // The line stays one, whatever the text that it shows.
  expect("wrote it (a\\x0ab)", [&](Spoiled& f) {
    f.number("/", "format_version", 2);
    f.text("/", "program_version", "a\nb");
  });
}

TEST_F(HostileIndex, LinksInACircleEnd) {
  {
    Spoiled file(folder_ + "/index.h5");
    H5Lcreate_hard(file.file(), "/", file.file(), "model/again", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_external("/etc/passwd", "/x", file.file(), "model/out", H5P_DEFAULT, H5P_DEFAULT);
  }
  const auto names = hdf5::File::open(folder_ + "/index.h5").datasets();
  EXPECT_EQ(std::count(names.begin(), names.end(), "model/a"), 1);
  EXPECT_LT(names.size(), 30U);
}

TEST_F(HostileIndex, PipesAndFoldersAreNoFiles) {
  const std::string shard = folder_ + "/" + shard_file_name(0, 1);
  fs::remove(folder_ + "/index.h5");
  ASSERT_EQ(::mkfifo((folder_ + "/index.h5").c_str(), 0600), 0);
  EXPECT_TRUE(contains(
      error_of([&] { const CheckpointReader reader(folder_); }, ExitStatus::kDamaged), "pipe"));
}

class HostileDataset : public ::testing::Test {
 protected:
  void SetUp() override {
    write_file(folder_.file("text"), "abcdefghijklmnopqrstuvwxyz");
    PrepareRequest request;
    request.inputs = {folder_.file("text")};
    request.output = path_;
    prepare(request);
    // Of another program, so that the uuid does not already say that a table was changed.
    Spoiled(path_).text("/", "dataset_uuid", "aaaaaaaa-aaaa-4aaa-aaaa-aaaaaaaaaaaa");
    good_ = read_file(path_);
    TokenDataset::open(path_).verify();
  }
  void expect(const std::string& part, const std::function<void(Spoiled&)>& change) {
    write_file(path_, good_);
    {
      Spoiled file(path_);
      change(file);
    }
    const std::int64_t before = peak_kilobytes();
    const std::string message = error_of([&] { TokenDataset::open(path_); }, ExitStatus::kDamaged);
    EXPECT_LT(peak_kilobytes() - before, 64 << 10) << message;
    EXPECT_TRUE(contains(message, path_) && contains(message, part))
        << message << "\nexpected: " << part;
  }

  TemporaryDirectory folder_;
  std::string path_ = folder_.file("data.h5"), good_;
};

TEST_F(HostileDataset, TokensAreAPlainRunInTheFile) {
  const auto tokens = [&](const std::string& part, hid_t type, std::vector<hsize_t> dims,
                          const Spoiled::Layout& layout = {}) {
    expect(part, [&](Spoiled& f) {
      f.replace("tokens", type, dims, nullptr, layout);
      f.number("tokens", "vocab_size", 256);
    });
  };
  tokens("no file holds so much", H5T_STD_U8LE, {hsize_t{1} << 61}, in_chunks);
  tokens("no file holds so much", H5T_STD_U32LE, {hsize_t{1} << 62}, in_chunks);
  tokens("does not lie inside the file", H5T_STD_U8LE, {hsize_t{1} << 40});
  tokens("expected one dim", H5T_STD_U8LE, {4, 4});
  tokens("expected one dim", H5T_STD_U16BE, {4});
  tokens("expected one dim", H5T_STD_I32LE, {4});
  tokens("expected one dim", H5T_IEEE_F32LE, {4});
  tokens("is empty", H5T_STD_U8LE, {0});
  tokens("must be contiguous", H5T_STD_U8LE, {4},
         [](hid_t p) { H5Pset_external(p, "/etc/passwd", 0, H5F_UNLIMITED); });
  tokens("must be contiguous", H5T_STD_U8LE, {4}, [](hid_t p) {
    const hsize_t chunk = 4;
    H5Pset_chunk(p, 1, &chunk);
    H5Pset_deflate(p, 1);
  });
  expect("soft or external link", [&](Spoiled& f) {
    f.remove("tokens");
    H5Lcreate_external("/etc/passwd", "/x", f.file(), "tokens", H5P_DEFAULT, H5P_DEFAULT);
  });
  for (const std::int64_t vocabulary : {-1LL, 0LL, 1LL << 31, 1LL << 62})
    expect("is not between 1 and",
           [&](Spoiled& f) { f.number("tokens", "vocab_size", vocabulary); });
  expect("its tokenizer knows 256 ids, 'vocab_size' is 257",
         [&](Spoiled& f) { f.number("tokens", "vocab_size", 257); });
}

TEST_F(HostileDataset, TablesArePlain) {
  for (const Storage& storage : storages())
    expect(storage.what == std::string("u64") ? "doc_offsets" : storage.what,
           [&](Spoiled& f) { storage.spoil(f, "doc_offsets", H5T_STD_U64LE, 3); });
  expect("at most",
         [&](Spoiled& f) { f.replace("doc_offsets", H5T_STD_U64LE, {hsize_t{1} << 40}, nullptr); });
  expect("does not lie inside the file",
         [&](Spoiled& f) { f.replace("doc_offsets", H5T_STD_U64LE, {1'000'000'000}, nullptr); });
  expect("does not lie inside the file", [&](Spoiled& f) {  // a header of 1 GB
    f.replace("tokenizer", H5T_STD_U8LE, {1 << 30}, nullptr);
  });
  expect("splits train [0, 18446744073709551615)", [&](Spoiled& f) {
    const std::uint64_t rows[] = {0, ~0ULL, ~0ULL, 2};
    f.replace("splits", H5T_STD_U64LE, {2, 2}, rows);
  });
}

TEST_F(HostileDataset, TheTokenizerIsSmallAndPlain) {
  const auto tokenizer = [&](const std::string& part, const std::string& json) {
    expect(part,
           [&](Spoiled& f) { f.replace("tokenizer", H5T_STD_U8LE, {json.size()}, json.data()); });
  };
  tokenizer("not a JSON object", std::string(100'000, '['));  // depth
  std::string deep = R"({"kind":)";
  for (int i = 0; i < 100'000; ++i) deep += "[";
  for (int i = 0; i < 100'000; ++i) deep += "]";
  tokenizer("with a \"kind\"", deep + "}");
  tokenizer("not a JSON object", R"({"kind":"bytes","x":1e99999})");
  tokenizer("not a JSON object", R"({"kind":7})");
  tokenizer("not a JSON object", std::string("{\"kind\":\"bytes\0\"}", 17));
  tokenizer("is unknown", R"({"kind":"by\u0000tes\n"})");
  tokenizer("no \"letters\"", R"({"kind":"nucleotides","letters":["A"]})");
  tokenizer("not printable", R"({"kind":"nucleotides","letters":"A\nC"})");
}

TEST_F(HostileDataset, WhatItSaysOfItselfIsShownOnOneLine) {
  write_file(path_, good_);
  Spoiled(path_).text("/", "source", "a\nb\x1b[2Jc\xff");
  EXPECT_EQ(TokenDataset::open(path_).facts().source, "a\\x0ab\\x1b[2Jc\\xff");
  expect("holds 'x\\x0ay', not a dataset", [](Spoiled& f) { f.text("/", "format", "x\ny"); });
}

}  // namespace
}  // namespace longspan::io
