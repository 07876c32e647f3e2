/// HDF5 as the rest of the program sees it: create and open files, small datasets and attributes,
/// the layout of bulk arrays. HDF5 writes layouts and tables only; bulk bytes go through
/// pread/pwrite (file.hpp) at the offsets given here. Only hdf5.cpp includes hdf5.h. Every call
/// takes one process-wide lock: the library may have been built without thread safety, and then two
/// threads on different files crash. Nothing here communicates. Read next: FORMAT.md,
/// checkpoint_writer.cpp.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/array.hpp"

namespace longspan::io::hdf5 {

/// Holds the process-wide mutex (recursive) and keeps the library from printing its error stack in
/// this thread. The functions below take it themselves; take it outside only to make a sequence of
/// them cheaper or atomic.
class Lock {
 public:
  Lock();

 private:
  std::unique_lock<std::recursive_mutex> held_;
};

std::string version();  ///< of the library that runs, "1.10.8"

/// What a file says of one dataset.
struct DatasetInfo {
  std::optional<DType> dtype;  ///< none of ours (big-endian, strings, compound, ...): empty
  std::string type_text;       ///< "f32", or a description such as "big-endian 32-bit integer"
  Shape shape;
  bool contiguous = false;  ///< one unfiltered run of bytes in this file
  bool is_virtual = false;
  bool compact = false;  ///< few bytes, kept among the metadata; read() gets at them
  /// Where that run starts, absolute; set only if contiguous, allocated, and inside the file.
  std::optional<std::uint64_t> offset;
  std::vector<std::int64_t> chunk;  ///< empty unless chunked
  std::int64_t bytes() const { return element_count(shape) * bytes_per_element; }
  std::int64_t bytes_per_element = 0;
};

/// Part of a virtual dataset: the whole of dataset `source` in `file` appears at [offset, offset +
/// shape).
struct VirtualBlock {
  std::string file;  ///< bare name, resolved next to the file that holds the virtual dataset
  std::string source;
  Shape offset, shape;
};

/// An open HDF5 file. Names are paths inside it ("model/wte"); groups on the way are created as
/// needed. Attributes belong to an object, "/" is the root. Errors name the file and the object:
/// damaged when reading, failed when writing. Links that are not plain names of objects in this
/// file (soft, external, user-defined) are refused: a file cannot make the program open another
/// one.
class File {
 public:
  /// A new file, in the 1.10 format (checksummed metadata, dead writers are detected). Throws Error
  /// if `path` exists. `metadata_bytes`: room kept together for names and attributes; about 600
  /// bytes per dataset.
  static File create(const std::string& path, std::int64_t metadata_bytes = 1 << 16);
  /// Read only. Throws Error (damaged) for a missing, empty, truncated, foreign or half-written
  /// file, and says which.
  static File open(const std::string& path);
  /// Read only, of bytes in memory; `name` stands for the path in errors.
  static File open_image(std::span<const std::byte> bytes, const std::string& name);

  /// An existing file of our own making, to add to it. Throws Error as open() does.
  static File update(const std::string& path);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();  ///< closes; errors are dropped, so writers call close()
  /// Throws Error if something could not be written.
  void close();

  const std::string& path() const { return path_; }

  bool exists(const std::string& name) const;
  std::vector<std::string> list(const std::string& group) const;  ///< names in one group, sorted
  /// Paths of all datasets below, without leading "/". Links to elsewhere are left out, and each
  /// group is entered once, so that links in a circle end.
  std::vector<std::string> datasets(const std::string& group = "/") const;
  DatasetInfo info(const std::string& dataset) const;
  /// For tables of files that somebody else may have written, before anything is allocated or
  /// read: throws Error (damaged) unless `dataset` is a plain run of bytes in this file (not
  /// chunked, compressed, virtual, external, or claimed but never written) of at most `most_bytes`.
  void require_plain(const std::string& dataset, std::int64_t most_bytes) const;

  /// Lays out a dataset without writing its elements and returns where they go: pwrite there after
  /// close(). Elements never written read as zeros, silently: keep hashes. A dataset of 0 elements
  /// has no place: returns 0.
  std::uint64_t create_contiguous(const std::string& name, DType dtype, const Shape& shape);
  /// A dataset that shows `blocks` of other files as one. bf16 sources appear as f32; holes read as
  /// NaN in float datasets.
  void create_virtual(const std::string& name, DType dtype, const Shape& shape,
                      std::span<const VirtualBlock> blocks);

  /// Creates and fills a dataset; data: element_count(shape) elements of `dtype`.
  void write(const std::string& name, DType dtype, const Shape& shape, const void* data);
  void write(const std::string& name, std::span<const std::uint64_t> values);
  void write(const std::string& name, std::span<const std::int64_t> values);
  void write(const std::string& name, std::span<const float> values);
  /// JSON, INI and the like: a 1-D u8 dataset, which has no size limit (an attribute may have one).
  void write_text(const std::string& name, const std::string& text);
  /// 1-D, fixed length, UTF-8, padded with NUL.
  void write_strings(const std::string& name, const std::vector<std::string>& values);

  /// The whole dataset, converted by the library to `memory` (refuses narrowing to bf16, which HDF5
  /// gets wrong).
  void read(const std::string& name, DType memory, void* data) const;
  /// Rows [first, first + count) of dim 0.
  void read_rows(const std::string& name, std::int64_t first, std::int64_t count, DType memory,
                 void* data) const;
  std::vector<std::uint64_t> read_u64(const std::string& name) const;
  std::vector<std::int64_t> read_i64(const std::string& name) const;
  std::vector<float> read_f32(const std::string& name) const;
  std::string read_text(const std::string& name) const;
  std::vector<std::string> read_strings(const std::string& name) const;

  bool has_attribute(const std::string& object, const std::string& name) const;
  void set_attribute(const std::string& object, const std::string& name, const std::string& value);
  void set_attribute(const std::string& object, const std::string& name, const char* value);
  void set_attribute(const std::string& object, const std::string& name, std::uint64_t value);
  void set_attribute(const std::string& object, const std::string& name, std::int64_t value);
  void set_attribute(const std::string& object, const std::string& name,
                     const Shape& value);  ///< u64[dims]
  std::string text_attribute(const std::string& object, const std::string& name) const;
  std::uint64_t u64_attribute(const std::string& object, const std::string& name) const;
  std::int64_t i64_attribute(const std::string& object, const std::string& name) const;
  Shape shape_attribute(const std::string& object, const std::string& name) const;

 private:
  explicit File(std::string path) : path_(std::move(path)) {}
  std::string path_;
  std::int64_t id_ = -1;  ///< hid_t
  bool writing_ = false;
};

}  // namespace longspan::io::hdf5
