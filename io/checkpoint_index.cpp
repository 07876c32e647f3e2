#include "io/checkpoint_index.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "io/checkpoint_claims.hpp"
#include "io/checksum.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

/// The manifest as flat columns, one row per shard, tensor or block. `dims` columns hold as many
/// numbers per row as the row's tensor has dims.
struct Tables {
  std::vector<std::uint64_t> shard_bytes;
  std::vector<std::string> tensor_name, tensor_dtype;
  std::vector<std::uint64_t> tensor_dim_count, tensor_dims;
  std::vector<std::uint64_t> block_tensor, block_shard, block_file_offset, block_xxh3;
  std::vector<std::uint64_t> block_offset_dims, block_shape_dims;
  std::vector<std::uint64_t> chunk_xxh3;  ///< of the blocks one after another
};

Tables tables_of(const CheckpointIndex& index) {
  Tables t;
  t.shard_bytes.assign(index.shard_bytes.begin(), index.shard_bytes.end());
  for (std::size_t i = 0; i < index.tensors.size(); ++i) {
    const TensorEntry& tensor = index.tensors[i];
    t.tensor_name.push_back(tensor.name);
    t.tensor_dtype.emplace_back(name_of(tensor.dtype));
    t.tensor_dim_count.push_back(tensor.global_shape.size());
    t.tensor_dims.insert(t.tensor_dims.end(), tensor.global_shape.begin(),
                         tensor.global_shape.end());
    for (const TensorEntry::Block& block : tensor.blocks) {
      t.block_tensor.push_back(i);
      t.block_shard.push_back(static_cast<std::uint64_t>(block.shard));
      t.block_file_offset.push_back(block.file_offset);
      t.block_xxh3.push_back(block.xxh3);
      t.chunk_xxh3.insert(t.chunk_xxh3.end(), block.chunk_xxh3.begin(), block.chunk_xxh3.end());
      t.block_offset_dims.insert(t.block_offset_dims.end(), block.offset.begin(),
                                 block.offset.end());
      t.block_shape_dims.insert(t.block_shape_dims.end(), block.shape.begin(), block.shape.end());
    }
  }
  return t;
}

/// Over everything in the index that HDF5 does not checksum itself, i.e. all datasets; with the
/// identity, so that tables of another checkpoint do not pass.
std::uint64_t hash_of(const CheckpointIndex& index, const Tables& t) {
  Checksum hash;
  const auto text = [&](const std::string& value) {
    hash.update(value.size());
    hash.update(value);
  };
  const auto texts = [&](const std::vector<std::string>& values) {
    hash.update(values.size());
    for (const auto& value : values) text(value);
  };
  const auto numbers = [&](const auto& values) {
    hash.update(values.size());
    hash.update(values.data(), values.size() * sizeof values[0]);
  };
  text(index.facts.uuid);
  hash.update(static_cast<std::uint64_t>(index.facts.step));
  texts(index.shard_files);
  numbers(t.shard_bytes);
  texts(t.tensor_name);
  texts(t.tensor_dtype);
  numbers(t.tensor_dim_count);
  numbers(t.tensor_dims);
  numbers(t.block_tensor);
  numbers(t.block_shard);
  numbers(t.block_file_offset);
  numbers(t.block_xxh3);
  numbers(t.block_offset_dims);
  numbers(t.block_shape_dims);
  text(index.facts.config);
  text(index.facts.tokenizer);
  numbers(index.facts.loss_history);
  return hash.digest();
}

/// The table of chunks came later: a hash of its own leaves the other one as it was.
std::uint64_t hash_of_chunks(const CheckpointIndex& index, const Tables& t) {
  Checksum hash;
  hash.update(index.facts.uuid.size());
  hash.update(index.facts.uuid);
  hash.update(static_cast<std::uint64_t>(index.facts.step));
  hash.update(static_cast<std::uint64_t>(index.chunk_bytes));
  hash.update(t.chunk_xxh3.size());
  hash.update(t.chunk_xxh3.data(), t.chunk_xxh3.size() * sizeof(std::uint64_t));
  return hash.digest();
}

DType dtype_named(const std::string& path, const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kU8, DType::kU16, DType::kU32,
                            DType::kI32, DType::kI64, DType::kU64, DType::kF64})
    if (name_of(dtype) == name) return dtype;
  fail_damaged("{}: the manifest names an unknown element type '{}'", path, name);
}

/// Takes rows out of a `dims` column.
class DimsColumn {
 public:
  DimsColumn(std::string path, std::vector<std::uint64_t> values)
      : path_(std::move(path)), values_(std::move(values)) {}
  Shape take(std::uint64_t count) {
    if (values_.size() - next_ < count) fail_lengths();
    const auto begin = values_.begin() + static_cast<std::ptrdiff_t>(next_);
    next_ += count;
    return Shape(begin, begin + static_cast<std::ptrdiff_t>(count));
  }
  void require_end() const {
    if (next_ != values_.size()) fail_lengths();
  }

 private:
  [[noreturn]] void fail_lengths() const {
    fail_damaged("{}: the tables of the manifest have unequal lengths", path_);
  }
  std::string path_;
  std::vector<std::uint64_t> values_;
  std::size_t next_ = 0;
};

CheckpointFacts read_facts(const hdf5::File& file) {
  CheckpointFacts facts;
  const auto number = [&](const char* name, std::int64_t least, std::int64_t most) {
    const std::int64_t value = file.i64_attribute("/", name);
    if (value < least || value > most)
      fail_damaged("{}: attribute '{}' is {}, not between {} and {}", file.path(), name, value,
                   least, most);
    return value;
  };
  constexpr std::int64_t kMany = std::int64_t{1} << 62, kRanks = std::int64_t{1} << 24;
  constexpr std::int64_t kYear9999 = 253'402'300'799;
  facts.step = number("step", 0, kMany);
  facts.tokens_seen = number("tokens_seen", 0, kMany);
  facts.created_unix = number("created_unix", 0, kYear9999);
  facts.data = static_cast<int>(number("mesh_data", 1, kRanks));
  facts.context = static_cast<int>(number("mesh_context", 1, kRanks));
  facts.tensor = static_cast<int>(number("mesh_tensor", 1, kRanks));
  facts.world_size = static_cast<int>(number("world_size", 1, kRanks));
  facts.seed = file.u64_attribute("/", "cursor_seed");
  facts.next_sample = number("cursor_next_sample", 0, kMany);
  facts.dataset_uuid = printable(file.text_attribute("/", "cursor_dataset_uuid"));
  facts.uuid = file.text_attribute("/", "checkpoint_uuid");
  facts.program_version = printable(file.text_attribute("/", "program_version"));
  file.require_plain("config", kMostManifestText);
  file.require_plain("tokenizer", kMostManifestText);
  file.require_plain("loss_history", kMostManifestText);
  facts.config = file.read_text("config");
  facts.tokenizer = file.read_text("tokenizer");
  facts.loss_history = file.read_f32("loss_history");
  return facts;
}

Tables read_tables(const hdf5::File& file) {
  Tables t;
  for (const char* name :
       {"shard_bytes", "tensor_dim_count", "tensor_dims", "block_tensor", "block_shard",
        "block_file_offset", "block_xxh3", "block_offset_dims", "block_shape_dims", "self_xxh3"})
    file.require_plain(std::string("manifest/") + name, kMostManifestRows * 8);
  for (const char* name : {"shard_file", "tensor_name", "tensor_dtype"})
    file.require_plain(std::string("manifest/") + name, kMostManifestRows * 8);
  t.shard_bytes = file.read_u64("manifest/shard_bytes");
  t.tensor_name = file.read_strings("manifest/tensor_name");
  t.tensor_dtype = file.read_strings("manifest/tensor_dtype");
  t.tensor_dim_count = file.read_u64("manifest/tensor_dim_count");
  t.tensor_dims = file.read_u64("manifest/tensor_dims");
  t.block_tensor = file.read_u64("manifest/block_tensor");
  t.block_shard = file.read_u64("manifest/block_shard");
  t.block_file_offset = file.read_u64("manifest/block_file_offset");
  t.block_xxh3 = file.read_u64("manifest/block_xxh3");
  t.block_offset_dims = file.read_u64("manifest/block_offset_dims");
  t.block_shape_dims = file.read_u64("manifest/block_shape_dims");
  return t;
}

void fill_tensors(const std::string& path, const Tables& t, CheckpointIndex& index) {
  const std::size_t blocks = t.block_tensor.size();
  if (t.tensor_dtype.size() != t.tensor_name.size() ||
      t.tensor_dim_count.size() != t.tensor_name.size() || t.block_shard.size() != blocks ||
      t.block_file_offset.size() != blocks || t.block_xxh3.size() != blocks)
    fail_damaged("{}: the tables of the manifest have unequal lengths", path);
  DimsColumn dims(path, t.tensor_dims), offsets(path, t.block_offset_dims),
      shapes(path, t.block_shape_dims);
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < t.tensor_name.size(); ++i) {
    TensorEntry tensor;
    tensor.name = t.tensor_name[i];
    require_tensor_name(path, tensor.name);
    if (!names.insert(t.tensor_name[i]).second)
      fail_damaged("{}: the manifest names the tensor '{}' twice", path, tensor.name);
    tensor.dtype = dtype_named(path, t.tensor_dtype[i]);
    if (t.tensor_dim_count[i] > kMostTensorDims)
      fail_damaged("{}: the manifest gives '{}' {} dims, there are at most {}", path, tensor.name,
                   t.tensor_dim_count[i], kMostTensorDims);
    tensor.global_shape = dims.take(t.tensor_dim_count[i]);
    if (!checked_bytes(tensor.global_shape, 8))
      fail_damaged("{}: the manifest gives '{}' the shape {}: no file holds so much", path,
                   tensor.name, to_string(tensor.global_shape));
    index.tensors.push_back(std::move(tensor));
  }
  dims.require_end();
  std::size_t next_chunk = 0;
  for (std::size_t i = 0; i < blocks; ++i) {
    if (t.block_tensor[i] >= index.tensors.size() || t.block_shard[i] >= index.shard_files.size())
      fail_damaged("{}: block {} of the manifest refers to a tensor or shard that does not exist",
                   path, i);
    TensorEntry& tensor = index.tensors[t.block_tensor[i]];
    TensorEntry::Block block;
    block.shard = static_cast<int>(t.block_shard[i]);
    block.offset = offsets.take(tensor.global_shape.size());
    block.shape = shapes.take(tensor.global_shape.size());
    block.file_offset = t.block_file_offset[i];
    block.xxh3 = t.block_xxh3[i];
    for (std::size_t d = 0; d < block.shape.size(); ++d)
      if (block.offset[d] < 0 || block.shape[d] < 0 || block.shape[d] > tensor.global_shape[d] ||
          block.offset[d] > tensor.global_shape[d] - block.shape[d])
        fail_damaged("{}: block {} of the manifest, {} at {}, lies outside of '{}' {}", path, i,
                     to_string(block.shape), to_string(block.offset), tensor.name,
                     to_string(tensor.global_shape));
    const std::int64_t shard_bytes = index.shard_bytes[t.block_shard[i]];
    const std::int64_t bytes =
        element_count(block.shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
    if (bytes > shard_bytes || block.file_offset > static_cast<std::uint64_t>(shard_bytes - bytes))
      fail_damaged(
          "{}: block {} of the manifest, {} bytes at {} of '{}', ends behind the {} bytes "
          "of its shard",
          path, i, bytes, block.file_offset, tensor.name, shard_bytes);
    const auto chunks =
        static_cast<std::uint64_t>(chunk_count(bytes_of(tensor, block), index.chunk_bytes));
    if (chunks > t.chunk_xxh3.size() - next_chunk)
      fail_damaged("{}: the table of chunks ends before block {}", path, i);
    const auto first = t.chunk_xxh3.begin() + static_cast<std::ptrdiff_t>(next_chunk);
    block.chunk_xxh3.assign(first, first + static_cast<std::ptrdiff_t>(chunks));
    next_chunk += chunks;
    tensor.blocks.push_back(std::move(block));
  }
  if (next_chunk != t.chunk_xxh3.size())
    fail_damaged("{}: the table of chunks has {} rows, the blocks have {} chunks", path,
                 t.chunk_xxh3.size(), next_chunk);
  offsets.require_end();
  shapes.require_end();
  std::int64_t patience = patience_for(index.tensors);
  for (const TensorEntry& tensor : index.tensors)
    if (const std::string problem = cover_problem(tensor, patience); !problem.empty())
      fail_damaged("{}: the manifest is not of one checkpoint: {}", path, problem);
}

/// Throws unless the table of chunks is as it was written. A checkpoint without one is an older
/// one.
void read_chunk_table(const std::string& path, const hdf5::File& file, Tables& t,
                      CheckpointIndex& index) {
  if (!file.exists("manifest/chunk_xxh3")) return;
  const auto chunk_bytes = file.read_u64("manifest/chunk_bytes"),
             stored = file.read_u64("manifest/chunk_self_xxh3");
  t.chunk_xxh3 = file.read_u64("manifest/chunk_xxh3");
  if (chunk_bytes.size() == 1) index.chunk_bytes = static_cast<std::int64_t>(chunk_bytes[0]);
  const std::uint64_t found = hash_of_chunks(index, t);
  if (stored.size() != 1 || stored[0] != found)
    fail_damaged("{}: the table of chunks is damaged: its hash is {:016x}, {:016x} was stored",
                 path, found, stored.empty() ? 0 : stored[0]);
  if (index.chunk_bytes < 1) fail_damaged("{}: chunks of {} bytes", path, index.chunk_bytes);
}

/// All that the hash covers; nothing of it is checked yet but its size.
std::pair<CheckpointIndex, Tables> read_parts(const hdf5::File& file) {
  CheckpointIndex index;
  index.facts = read_facts(file);
  index.hdf5_version = printable(file.text_attribute("/", "hdf5_version"));
  Tables t = read_tables(file);
  index.shard_files = file.read_strings("manifest/shard_file");
  index.shard_bytes.assign(t.shard_bytes.begin(), t.shard_bytes.end());
  if (index.shard_bytes.size() != index.shard_files.size())
    fail_damaged("{}: the tables of the manifest have unequal lengths", file.path());
  return {std::move(index), std::move(t)};
}

/// Every name and size once, before anything is opened by them.
void require_shards(const std::string& path, const CheckpointIndex& index) {
  if (index.shard_files.size() != static_cast<std::size_t>(index.facts.world_size))
    fail_damaged("{}: the manifest lists {} shards, its world_size is {}", path,
                 index.shard_files.size(), index.facts.world_size);
  std::set<std::string_view> names;
  for (const std::string& name : index.shard_files) {
    require_shard_name(path, name);
    if (!names.insert(name).second)
      fail_damaged("{}: the manifest names the shard '{}' twice", path, name);
  }
  for (const std::int64_t bytes : index.shard_bytes)
    if (bytes < 0) fail_damaged("{}: the manifest claims a shard of 2^63 bytes or more", path);
}

}  // namespace

std::int64_t bytes_of(const TensorEntry& tensor, const TensorEntry::Block& block) {
  return element_count(block.shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
}

std::int64_t chunk_count(std::int64_t bytes, std::int64_t chunk_bytes) {
  return chunk_bytes == 0 ? 0 : bytes / chunk_bytes + (bytes % chunk_bytes != 0);
}

std::string shard_file_name(int rank, int world_size) {
  return fmt::format("shard-{:05}-of-{:05}.h5", rank, world_size);
}

std::string block_dataset_name(const std::string& tensor, int number) {
  return number == 0 ? tensor : fmt::format("{}@{}", tensor, number);
}

void require_exact_cover(const std::vector<TensorEntry>& tensors) {
  std::int64_t patience = patience_for(tensors);
  for (const TensorEntry& tensor : tensors)
    if (const std::string problem = cover_problem(tensor, patience); !problem.empty())
      fail("checkpoint: {}", problem);
}

void write_facts(hdf5::File& file, const CheckpointFacts& facts) {
  const auto attribute = [&](const char* name, const auto& value) {
    file.set_attribute("/", name, value);
  };
  attribute("checkpoint_uuid", facts.uuid);
  attribute("step", facts.step);
  attribute("tokens_seen", facts.tokens_seen);
  attribute("created_unix", facts.created_unix);
  attribute("mesh_data", std::int64_t{facts.data});
  attribute("mesh_context", std::int64_t{facts.context});
  attribute("mesh_tensor", std::int64_t{facts.tensor});
  attribute("world_size", std::int64_t{facts.world_size});
  attribute("cursor_seed", facts.seed);
  attribute("cursor_next_sample", facts.next_sample);
  attribute("cursor_dataset_uuid", facts.dataset_uuid);
  attribute("program_version", facts.program_version);
  file.write_text("config", facts.config);
  file.write_text("tokenizer", facts.tokenizer);
  file.write("loss_history", facts.loss_history);
}

void write_index(const std::string& path, const CheckpointIndex& index) {
  const Tables t = tables_of(index);
  const CheckpointFacts& facts = index.facts;
  const auto metadata = static_cast<std::int64_t>(800 * index.tensors.size() +
                                                  120 * t.block_tensor.size() + (1 << 16));
  hdf5::File file = hdf5::File::create(path, metadata);
  const auto attribute = [&](const char* name, const auto& value) {
    file.set_attribute("/", name, value);
  };
  attribute("format", kIndexFormat);
  attribute("format_version", kCheckpointFormatVersion);
  attribute("hdf5_version", hdf5::version());

  file.write_strings("manifest/shard_file", index.shard_files);
  file.write("manifest/shard_bytes", t.shard_bytes);
  file.write_strings("manifest/tensor_name", t.tensor_name);
  file.write_strings("manifest/tensor_dtype", t.tensor_dtype);
  file.write("manifest/tensor_dim_count", t.tensor_dim_count);
  file.write("manifest/tensor_dims", t.tensor_dims);
  file.write("manifest/block_tensor", t.block_tensor);
  file.write("manifest/block_shard", t.block_shard);
  file.write("manifest/block_file_offset", t.block_file_offset);
  file.write("manifest/block_xxh3", t.block_xxh3);
  file.write("manifest/block_offset_dims", t.block_offset_dims);
  file.write("manifest/block_shape_dims", t.block_shape_dims);
  file.write("manifest/self_xxh3", std::vector<std::uint64_t>{hash_of(index, t)});
  if (index.chunk_bytes > 0) {
    file.write("manifest/chunk_bytes",
               std::vector<std::uint64_t>{static_cast<std::uint64_t>(index.chunk_bytes)});
    file.write("manifest/chunk_xxh3", t.chunk_xxh3);
    file.write("manifest/chunk_self_xxh3", std::vector<std::uint64_t>{hash_of_chunks(index, t)});
  }
  write_facts(file, facts);

  std::vector<hdf5::VirtualBlock> blocks;
  for (const TensorEntry& tensor : index.tensors) {
    blocks.clear();
    std::map<int, int> seen;  // blocks of the tensor in each shard
    for (const auto& block : tensor.blocks)
      blocks.push_back({index.shard_files[static_cast<std::size_t>(block.shard)],
                        block_dataset_name(tensor.name, seen[block.shard]++), block.offset,
                        block.shape});
    file.create_virtual(tensor.name, tensor.dtype, tensor.global_shape, blocks);
    file.set_attribute(tensor.name, "dtype", std::string(name_of(tensor.dtype)));
  }
  file.close();
}

CheckpointIndex read_index(const std::string& folder) {
  const std::string path = folder + "/index.h5";
  if (!path_exists(path)) fail_damaged("{}: no checkpoint: it has no index.h5", folder);
  return read_index(hdf5::File::open(path));
}

CheckpointIndex read_index(const hdf5::File& file) {
  const std::string& path = file.path();
  if (!file.has_attribute("/", "format") || file.text_attribute("/", "format") != kIndexFormat)
    fail_damaged("{}: an HDF5 file, but not the index of a checkpoint", path);
  const std::int64_t version = file.i64_attribute("/", "format_version");
  if (version < 1 || version > kCheckpointFormatVersion)
    fail_damaged(
        "{}: checkpoint format version {}, this program reads version {}: use the program that "
        "wrote it ({})",
        path, version, kCheckpointFormatVersion,
        file.has_attribute("/", "program_version") ? file.text_attribute("/", "program_version")
                                                   : "unknown");
  auto [index, tables] = read_parts(file);
  const auto stored = file.read_u64("manifest/self_xxh3");
  const std::uint64_t found = hash_of(index, tables);
  if (stored.size() != 1 || stored[0] != found)
    fail_damaged("{}: the manifest is damaged: its hash is {:016x}, {:016x} was stored", path,
                 found, stored.empty() ? 0 : stored[0]);
  require_shards(path, index);
  read_chunk_table(path, file, tables, index);
  fill_tensors(path, tables, index);
  return std::move(index);
}

std::uint64_t manifest_hash(const hdf5::File& file) {
  const auto [index, tables] = read_parts(file);
  return hash_of(index, tables);
}

}  // namespace longspan::io
