/// Files of the safetensors format (github.com/huggingface/safetensors): 8 bytes little-endian
/// length, a JSON header of that length, then the tensors' bytes. Files come from others: every
/// length, name, type, shape and offset is checked before it is used, and what does not hold is
/// refused in one line (damaged). Nothing here communicates. Read next: checkpoint_convert.hpp.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.hpp"
#include "parallel/array.hpp"

namespace longspan::io {

/// As the reference implementation: a longer header is refused.
constexpr std::int64_t kLargestSafetensorsHeader = 100'000'000;

struct SafetensorsTensor {
  std::string name;
  std::string dtype;                ///< as in the file: "F32", "BF16", "F16", "I64", ...
  Shape shape;                      ///< empty = a scalar
  std::int64_t begin = 0, end = 0;  ///< bytes behind the header
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  ///< in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// Parses and checks the JSON of a header that `data_bytes` bytes of tensors follow: known types,
/// shapes whose bytes are those of the offsets, and tensors that cover all bytes once, without
/// holes or overlaps. Throws Error (damaged); `where` begins its message.
SafetensorsHeader parse_safetensors_header(std::string_view header, std::int64_t data_bytes,
                                           const std::string& where = "safetensors header");

/// A safetensors file, open to read.
class SafetensorsFile {
 public:
  /// Reads and checks the header. Throws Error (damaged) naming the file.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const SafetensorsHeader& header() const { return header_; }
  /// Elements [first, first + count) of a tensor of this file as fp32: F32 as they are, BF16 and
  /// F16 exactly, F64 rounded. Throws Error (damaged) for other types.
  void read(const SafetensorsTensor& tensor, std::int64_t first, std::int64_t count,
            float* values) const;

 private:
  RawFile file_;
  std::int64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

/// The tensors of a folder that `transformers` saved: model.safetensors, or the files that
/// model.safetensors.index.json names.
class SafetensorsFolder {
 public:
  /// Throws Error (damaged): neither is there; a shard is missing, is not in this folder, or holds
  /// other tensors than the index says.
  explicit SafetensorsFolder(const std::string& folder);

  const std::string& path() const { return folder_; }
  /// Names, sorted.
  std::vector<std::string> names() const;
  /// Null if there is no tensor of this name.
  const SafetensorsTensor* find(const std::string& name) const;
  /// As SafetensorsFile::read.
  void read(const std::string& name, std::int64_t first, std::int64_t count, float* values) const;

 private:
  struct Place {
    std::size_t file = 0, tensor = 0;
  };
  std::string folder_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place> places_;
};

/// A new safetensors file, written in any order, of fp32 values that are stored as they are or
/// rounded to bfloat16 (to nearest, ties to even).
class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    Shape shape;
  };
  /// Writes the header and reserves the room. `dtype`: kF32 or kBF16. Throws Error if `path` cannot
  /// be written, or does not fit.
  SafetensorsWriter(const std::string& path, const std::vector<Tensor>& tensors, DType dtype,
                    const std::map<std::string, std::string>& metadata);
  /// Elements [first, first + count) of tensor number `tensor`.
  void write(std::size_t tensor, std::int64_t first, std::int64_t count, const float* values);
  /// On disk when it returns.
  void close();

 private:
  DType dtype_;
  std::vector<std::int64_t> begin_;  ///< byte in the file of each tensor
  std::vector<std::uint16_t> rounded_;
  RawFile file_;
};

}  // namespace longspan::io
