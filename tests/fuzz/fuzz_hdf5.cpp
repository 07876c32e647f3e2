/// HDF5 metadata as we read it: the index of a checkpoint and the tables of a dataset. Bytes of a
/// file that are changed at random do not get far (its metadata carry checksums, and HDF5 1.10 has
/// faults of its own with files that have none), so the input is a list of changes to a good file:
/// attributes, rows of tables, names, types, layouts, links and extents. The file is made in memory
/// with HDF5 itself, and gets the right hash of its manifest, as an attacker would give it.
#include <fuzzer/FuzzedDataProvider.h>
#include <hdf5.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint_index.hpp"
#include "io/dataset_layout.hpp"
#include "io/hdf5.hpp"
#include "parallel/error.hpp"

namespace {

using longspan::io::hdf5::File;

void require(bool good) {
  if (!good) std::abort();
}

enum class How {
  kPlain,
  kCompact,
  kChunked,
  kDeflated,
  kExternal,
  kVirtual,
  kUnwritten,
  kSoftLink,
  kExternalLink,
  kGroup,
  kMissing,
  kLast = kMissing
};
enum class Kind { kOwn, kI32, kU64BE, kF64, kString, kCompound, kLast = kCompound };

struct Table {
  hid_t type = H5T_STD_U64LE;
  std::vector<std::uint64_t> rows;  ///< of numbers
  std::vector<std::string> words;   ///< of strings
  std::string text;                 ///< of u8
  std::vector<hsize_t> dims;        ///< empty = as many as there are
  How how = How::kPlain;
  Kind kind = Kind::kOwn;
};

struct Attribute {
  std::string text;
  std::int64_t number = 0;
  Kind kind = Kind::kOwn;
  bool is_text = false, is_list = false, missing = false;
};

struct Recipe {
  std::map<std::string, Attribute> attributes;  ///< "object:name"
  std::map<std::string, Table> tables;
};

Attribute text(std::string value) {
  Attribute attribute;
  attribute.text = std::move(value);
  attribute.is_text = true;
  return attribute;
}
Attribute number(std::int64_t value) {
  Attribute attribute;
  attribute.number = value;
  return attribute;
}
Table numbers(std::vector<std::uint64_t> rows) {
  Table table;
  table.rows = std::move(rows);
  return table;
}
Table words(std::vector<std::string> rows) {
  Table table;
  table.type = H5T_C_S1;
  table.words = std::move(rows);
  return table;
}
Table bytes(std::string value) {
  Table table;
  table.type = H5T_STD_U8LE;
  table.text = std::move(value);
  return table;
}

Recipe index_recipe() {
  Recipe r;
  r.attributes = {{"/:format", text("longspan-checkpoint")},
                  {"/:format_version", number(1)},
                  {"/:checkpoint_uuid", text("f8e01269-da58-4d9c-9464-bfa8809ba333")},
                  {"/:step", number(4)},
                  {"/:tokens_seen", number(512)},
                  {"/:created_unix", number(1795275748)},
                  {"/:mesh_data", number(2)},
                  {"/:mesh_context", number(1)},
                  {"/:mesh_tensor", number(1)},
                  {"/:world_size", number(2)},
                  {"/:cursor_seed", number(1)},
                  {"/:cursor_next_sample", number(16)},
                  {"/:cursor_dataset_uuid", text("d")},
                  {"/:program_version", text("p")},
                  {"/:hdf5_version", text("1.10.8")}};
  r.tables["manifest/shard_file"] = words({"shard-00000-of-00002.h5", "shard-00001-of-00002.h5"});
  r.tables["manifest/shard_bytes"] = numbers({70000, 70000});
  r.tables["manifest/tensor_name"] = words({"model/a", "model/b"});
  r.tables["manifest/tensor_dtype"] = words({"f32", "bf16"});
  r.tables["manifest/tensor_dim_count"] = numbers({2, 1});
  r.tables["manifest/tensor_dims"] = numbers({4, 3, 5});
  r.tables["manifest/block_tensor"] = numbers({0, 0, 1});
  r.tables["manifest/block_shard"] = numbers({0, 1, 0});
  r.tables["manifest/block_file_offset"] = numbers({4096, 4096, 8192});
  r.tables["manifest/block_xxh3"] = numbers({1, 2, 3});
  r.tables["manifest/block_offset_dims"] = numbers({0, 0, 2, 0, 0});
  r.tables["manifest/block_shape_dims"] = numbers({2, 3, 2, 3, 5});
  r.tables["manifest/self_xxh3"] = numbers({0});
  r.tables["config"] = bytes("[run]\n");
  r.tables["tokenizer"] = bytes("{\"kind\":\"bytes\"}");
  Table losses = numbers({0x3f800000});
  losses.type = H5T_IEEE_F32LE;
  r.tables["loss_history"] = losses;
  return r;
}

Recipe dataset_recipe() {
  Recipe r;
  r.attributes = {{"/:format", text("longspan-dataset")},
                  {"/:format_version", number(1)},
                  {"/:kind", text("tokens")},
                  {"/:dataset_uuid", text("aaaaaaaa-aaaa-4aaa-aaaa-aaaaaaaaaaaa")},
                  {"/:source", text("s")},
                  {"/:created_by", text("c")},
                  {"tokens:vocab_size", number(256)}};
  r.tables["tokens"] = bytes("abcdefgh");
  r.tables["doc_offsets"] = numbers({0, 3, 3, 8});
  Table splits = numbers({0, 2, 2, 3});
  splits.dims = {2, 2};
  r.tables["splits"] = splits;
  r.tables["tokenizer"] = bytes("{\"kind\":\"bytes\"}");
  r.tables["block_xxh3"] = numbers({7});
  return r;
}

std::uint64_t any_number(FuzzedDataProvider& data) {
  constexpr std::uint64_t kEdges[] = {0,
                                      1,
                                      2,
                                      3,
                                      0x7fffffff,
                                      0x80000000,
                                      0xffffffff,
                                      1ULL << 32,
                                      1ULL << 62,
                                      (1ULL << 63) - 1,
                                      1ULL << 63,
                                      ~0ULL,
                                      1'000'000'000,
                                      70000,
                                      65536,
                                      1ULL << 61};
  return data.ConsumeBool() ? data.PickValueInArray(kEdges) : data.ConsumeIntegral<std::uint64_t>();
}

std::string any_text(FuzzedDataProvider& data) {
  constexpr const char* kTexts[] = {
      "../../etc/passwd", "/etc/passwd", "",        ".",         "..",     "a\nb",
      "a/../b",           "f32",         "model/a", "model/a@1", "x/y.h5", "longspan-dataset"};
  return data.ConsumeBool() ? data.PickValueInArray(kTexts) : data.ConsumeRandomLengthString(300);
}

void change(FuzzedDataProvider& data, Recipe& recipe) {
  if (data.ConsumeBool()) {
    auto at = recipe.attributes.begin();
    std::advance(at, data.ConsumeIntegralInRange<std::size_t>(0, recipe.attributes.size() - 1));
    Attribute& attribute = at->second;
    switch (data.ConsumeIntegralInRange(0, 5)) {
      case 0:
        attribute.missing = true;
        break;
      case 1:
        attribute.is_list = true;
        break;
      case 2:
        attribute.is_text = !attribute.is_text;
        break;
      case 3:
        attribute.kind =
            static_cast<Kind>(data.ConsumeIntegralInRange(0, static_cast<int>(Kind::kLast)));
        break;
      case 4:
        attribute.text = any_text(data);
        break;
      default:
        attribute.number = static_cast<std::int64_t>(any_number(data));
    }
    return;
  }
  auto at = recipe.tables.begin();
  std::advance(at, data.ConsumeIntegralInRange<std::size_t>(0, recipe.tables.size() - 1));
  Table& table = at->second;
  const auto place = [&](std::size_t size) {
    return data.ConsumeIntegralInRange<std::size_t>(0, size - 1);
  };
  switch (data.ConsumeIntegralInRange(0, 6)) {
    case 0:
      table.how = static_cast<How>(data.ConsumeIntegralInRange(0, static_cast<int>(How::kLast)));
      break;
    case 1:
      table.kind = static_cast<Kind>(data.ConsumeIntegralInRange(0, static_cast<int>(Kind::kLast)));
      break;
    case 2:
      table.dims.clear();
      for (int d = data.ConsumeIntegralInRange(0, 4); d > 0; --d)
        table.dims.push_back(any_number(data));
      break;
    case 3:
      if (!table.rows.empty()) table.rows[place(table.rows.size())] = any_number(data);
      if (!table.words.empty()) table.words[place(table.words.size())] = any_text(data);
      if (!table.text.empty()) table.text = any_text(data);
      break;
    case 4:
      if (!table.rows.empty()) table.rows.push_back(any_number(data));
      if (!table.words.empty()) table.words.push_back(any_text(data));
      break;
    case 5:
      if (!table.rows.empty()) table.rows.pop_back();
      if (!table.words.empty()) table.words.pop_back();
      break;
    default:
      table.text = data.ConsumeRandomLengthString(200);
  }
}

/// A type instead of the right one, and room for whatever is written in it.
hid_t other_type(Kind kind) {
  switch (kind) {
    case Kind::kI32:
      return H5Tcopy(H5T_STD_I32LE);
    case Kind::kU64BE:
      return H5Tcopy(H5T_STD_U64BE);
    case Kind::kF64:
      return H5Tcopy(H5T_IEEE_F64LE);
    case Kind::kString: {
      const hid_t type = H5Tcopy(H5T_C_S1);
      H5Tset_size(type, H5T_VARIABLE);
      return type;
    }
    default: {
      const hid_t type = H5Tcreate(H5T_COMPOUND, 8);
      H5Tinsert(type, "x", 0, H5T_STD_U64LE);
      return type;
    }
  }
}

void write_attribute(hid_t file, const std::string& key, const Attribute& attribute) {
  if (attribute.missing) return;
  const auto colon = key.find(':');
  const hid_t owner = H5Oopen(file, key.substr(0, colon).c_str(), H5P_DEFAULT);
  if (owner < 0) return;
  const hsize_t three = 3;
  const hid_t space =
      attribute.is_list ? H5Screate_simple(1, &three, nullptr) : H5Screate(H5S_SCALAR);
  hid_t type = -1;
  std::vector<char> value(4096, 'x');
  const char* pointers[3] = {"a", "b\n", "c"};
  const void* from = value.data();
  if (attribute.kind != Kind::kOwn) {
    type = other_type(attribute.kind);
    if (attribute.kind == Kind::kString) from = pointers;
  } else if (attribute.is_text) {
    type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, attribute.text.empty() ? 1 : attribute.text.size());
    attribute.text.copy(value.data(), 1000);
  } else {
    type = H5Tcopy(H5T_STD_I64LE);
    std::memcpy(value.data(), &attribute.number, 8);
  }
  const hid_t made =
      H5Acreate2(owner, key.substr(colon + 1).c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT);
  if (made >= 0) {
    H5Awrite(made, type, from);
    H5Aclose(made);
  }
  H5Tclose(type);
  H5Sclose(space);
  H5Oclose(owner);
}

void write_table(hid_t file, const std::string& name, const Table& table) {
  const hid_t links = H5Pcreate(H5P_LINK_CREATE);
  H5Pset_create_intermediate_group(links, 1);
  const char* const path = name.c_str();
  hid_t type = table.kind != Kind::kOwn ? other_type(table.kind) : H5Tcopy(table.type);
  std::vector<char> data;
  std::size_t rows = table.rows.size();
  if (table.type == H5T_C_S1 && table.kind == Kind::kOwn) {
    std::size_t length = 1;
    for (const auto& word : table.words) length = std::max(length, word.size());
    H5Tset_size(type, length);
    rows = table.words.size();
    for (const auto& word : table.words) {
      std::string padded = word;
      padded.resize(length);
      data.insert(data.end(), padded.begin(), padded.end());
    }
  } else if (table.type == H5T_STD_U8LE && table.kind == Kind::kOwn) {
    rows = table.text.size();
    data.assign(table.text.begin(), table.text.end());
  } else {
    const std::size_t width = H5Tget_size(type);
    for (const std::uint64_t row : table.rows)
      data.insert(data.end(), reinterpret_cast<const char*>(&row),
                  reinterpret_cast<const char*>(&row) + std::min<std::size_t>(width, 8));
    if (table.kind == Kind::kString) data.clear();
  }
  const std::vector<hsize_t> dims = table.dims.empty() ? std::vector<hsize_t>{rows} : table.dims;
  hsize_t elements = 1;
  for (const hsize_t extent : dims) elements = extent > 1'000'000 ? 1'000'000 : elements * extent;
  const hid_t space = H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  const std::vector<hsize_t> chunk(dims.size(), 1);
  const std::string outside = "/etc/passwd";
  switch (table.how) {
    case How::kCompact:
      H5Pset_layout(properties, H5D_COMPACT);
      break;
    case How::kChunked:
      H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
      break;
    case How::kDeflated:
      H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
      H5Pset_deflate(properties, 1);
      break;
    case How::kExternal:
      H5Pset_external(properties, outside.c_str(), 0, H5F_UNLIMITED);
      break;
    case How::kVirtual:
      H5Pset_virtual(properties, space, "other.h5", "x", space);
      break;
    case How::kSoftLink:
      H5Lcreate_soft("/config", file, path, links, H5P_DEFAULT);
      break;
    case How::kExternalLink:
      H5Lcreate_external("/etc/passwd", "/x", file, path, links, H5P_DEFAULT);
      break;
    case How::kGroup: {
      const hid_t group = H5Gcreate2(file, path, links, H5P_DEFAULT, H5P_DEFAULT);
      if (group >= 0) H5Gclose(group);
      break;
    }
    default:
      break;
  }
  const bool none = table.how == How::kSoftLink || table.how == How::kExternalLink ||
                    table.how == How::kGroup || table.how == How::kMissing;
  const bool extent_fits = elements * H5Tget_size(type) <= data.size();
  const hid_t made = none || space < 0 || (table.how == How::kCompact && !extent_fits)
                         ? -1
                         : H5Dcreate2(file, path, type, space, links, properties, H5P_DEFAULT);
  if (made >= 0) {
    const bool here = table.how == How::kPlain || table.how == How::kCompact;
    if (here && extent_fits && !data.empty())
      H5Dwrite(made, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data.data());
    H5Dclose(made);
  }
  if (space >= 0) H5Sclose(space);
  H5Pclose(properties);
  H5Pclose(links);
  H5Tclose(type);
}

std::vector<std::byte> image_of(hid_t file) {
  H5Fflush(file, H5F_SCOPE_LOCAL);
  std::vector<std::byte> image(static_cast<std::size_t>(H5Fget_file_image(file, nullptr, 0)));
  H5Fget_file_image(file, image.data(), image.size());
  return image;
}

template <class Work>
bool survives(Work&& work) {
  try {
    work();
    return true;
  } catch (const longspan::Error& error) {
    require(error.status() == longspan::ExitStatus::kDamaged);
    require(std::string_view(error.what()).find('\n') == std::string_view::npos);
    return false;
  }
}

void check_index(const longspan::io::CheckpointIndex& index) {
  for (const auto& name : index.shard_files) require(name.find('/') == std::string::npos);
  for (const auto& tensor : index.tensors) {
    std::int64_t covered = 0;
    for (const auto& block : tensor.blocks) {
      covered += longspan::element_count(block.shape);
      require(block.shard >= 0 && static_cast<std::size_t>(block.shard) < index.shard_files.size());
    }
    require(covered == longspan::element_count(tensor.global_shape));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size) {
  const longspan::io::hdf5::Lock lock;
  FuzzedDataProvider data(input, size);
  const bool is_index = data.ConsumeBool();
  Recipe recipe = is_index ? index_recipe() : dataset_recipe();
  while (data.remaining_bytes() > 0) change(data, recipe);

  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_fapl_core(access, 1 << 16, 0);
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  const hid_t file = H5Fcreate("fuzz.h5", H5F_ACC_TRUNC, H5P_DEFAULT, access);
  require(file >= 0);
  for (const auto& [name, table] : recipe.tables) write_table(file, name, table);
  for (const auto& [key, attribute] : recipe.attributes) write_attribute(file, key, attribute);
  H5Eclear2(H5E_DEFAULT);
  std::vector<std::byte> image = image_of(file);
  if (is_index) {
    std::uint64_t hash = 0;
    if (survives([&] { hash = longspan::io::manifest_hash(File::open_image(image, "fuzz.h5")); })) {
      const hid_t stored = H5Dopen2(file, "manifest/self_xxh3", H5P_DEFAULT);
      const hid_t space = H5Dget_space(stored);
      if (H5Sget_simple_extent_npoints(space) == 1)
        H5Dwrite(stored, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, &hash);
      H5Sclose(space);
      H5Dclose(stored);
      image = image_of(file);
    }
    survives([&] { check_index(longspan::io::read_index(File::open_image(image, "fuzz.h5"))); });
  } else {
    survives([&] { longspan::io::read_dataset_tables(File::open_image(image, "fuzz.h5")); });
  }
  survives([&] { File::open_image(image, "fuzz.h5").datasets(); });
  H5Fclose(file);
  H5Pclose(access);
  H5Eclear2(H5E_DEFAULT);
  return 0;
}
