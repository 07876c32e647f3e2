/// The bytes of a file from beginning to end, gunzipped where the file is gzip (told by its first
/// bytes, whatever its name; several members one after the other, as bgzip and `cat a.gz b.gz` make
/// them, are one stream).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace longspan::io {

class ByteSource {
 public:
  /// Throws Error naming the file if it cannot be opened or is not a regular file.
  explicit ByteSource(const std::string& path);
  ~ByteSource();
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  /// Fills `bytes` as far as the file goes; fewer, or 0, means that it has ended. Throws Error:
  /// failed for a read error, damaged for gzip data that are cut off or fail their checksum.
  std::size_t read(std::span<std::uint8_t> bytes);

  bool compressed() const;
  std::int64_t file_bytes() const;     ///< size of the file as it lies on disk
  std::int64_t file_position() const;  ///< how much of it has been consumed

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longspan::io
