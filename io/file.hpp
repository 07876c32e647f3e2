/// Files and folders through the system's own calls: whole reads and writes at an offset, fsync,
/// rename, free space. Every error is one line with the path, the system's reason and, for a full
/// disk, the bytes needed and free. Thread safe; nothing here communicates.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/handle.hpp"

namespace longspan::io {

void close_descriptor(int descriptor);
using Descriptor = Handle<int, -1, close_descriptor>;

/// An open file of the operating system. Knows its path for its errors.
class RawFile {
 public:
  enum class Mode { kRead, kWrite };  ///< kWrite: of an existing file
  /// Throws Error: damaged when a file to read is not there, failed when one cannot be opened for
  /// writing.
  static RawFile open(const std::string& path, Mode mode);
  /// A new file, to write. Throws Error (failed) if it exists.
  static RawFile create(const std::string& path);

  const std::string& path() const { return path_; }
  std::int64_t size() const;
  /// All of [offset, offset + bytes) into `data`. Throws Error (damaged) if the file ends before.
  void read(void* data, std::int64_t bytes, std::int64_t offset) const;
  void write(const void* data, std::int64_t bytes, std::int64_t offset);
  /// Allocates the first `bytes` where the file system can, so that a full disk is found before the
  /// first write.
  void reserve(std::int64_t bytes);
  /// Asks the system to begin writing this range to disk, so that sync() has less to wait for. A
  /// hint.
  void start_writeback(std::int64_t offset, std::int64_t bytes);
  /// On disk, not only in the page cache.
  void sync();
  /// close() reports what network file systems keep back until then.
  void close();

 private:
  RawFile(std::string path, Descriptor descriptor);
  std::string path_;
  Descriptor descriptor_;
};

/// "path: cannot write: No space left on device (12.0 MB free of ...)": the line for a failed call,
/// by errno.
[[noreturn]] void fail_errno(const std::string& path, const std::string& action, int error_number);

bool path_exists(const std::string& path);  ///< of whatever kind; follows links
bool is_directory(const std::string& path);
bool is_regular_file(const std::string& path);
/// Size of a file; -1 if it does not exist.
std::int64_t file_size(const std::string& path);
std::vector<std::string> list_directory(
    const std::string& path);  ///< names, sorted; empty if it does not exist
/// With its parents; it may exist already.
void make_directories(const std::string& path);
void make_directory(const std::string& path);  ///< throws Error if it exists
/// A file or a whole folder; nothing if it does not exist.
void remove_path(const std::string& path);
void rename_path(const std::string& from, const std::string& to);
/// Makes creations, renames and removals in a folder durable.
void sync_directory(const std::string& path);
void sync_file(const std::string& path);
/// Points `link` at `target` (a name relative to the link's folder), replacing an older link in one
/// step; `temporary` is where it is made.
void replace_symlink(const std::string& target, const std::string& link,
                     const std::string& temporary);
/// Target of a link; empty if `path` is none.
std::string symlink_target(const std::string& path);

/// Bytes an ordinary user can still write where `path` is.
std::int64_t free_bytes(const std::string& path);
/// Throws Error saying how much is needed, how much is free and what to do, unless `bytes` fit into
/// the file system of `path`.
void require_free_space(const std::string& path, std::int64_t bytes, const std::string& what);

std::string parent_path(const std::string& path);  ///< "." if there is none
std::string base_name(const std::string& path);    ///< last component, without trailing slashes
std::string format_bytes(std::int64_t bytes);      ///< "999 B", "1.5 MB", "12.3 GB"; powers of 1000

}  // namespace longspan::io
