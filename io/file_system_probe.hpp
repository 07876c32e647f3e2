/// What the file system under a run directory can do, found out by doing it with small files of its
/// own. For `doctor`; nothing here communicates.
#pragma once

#include <cstdint>
#include <string>

namespace longspan::io {

struct FileSystemFacts {
  std::string type;  ///< "ext4", "nfs", "lustre", "tmpfs", ... or its magic number
  std::int64_t free_bytes = 0, total_bytes = 0;
  std::int64_t free_files = -1;  ///< that may still be made; -1 = no limit is told
  bool shared = false;           ///< a network or cluster file system, by its type
  std::string locking;      ///< empty if flock() holds a second opener off; else what went wrong
  std::string renaming;     ///< empty if a rename replaces a file in one step; else what went wrong
  std::string linking;      ///< empty if symbolic links work; else what went wrong
  bool direct = false;      ///< O_DIRECT reads and writes work
  double sync_seconds = 0;  ///< fsync of a file of one block, the median of five
  double write_bytes_per_second = 0;  ///< written and synced, in the same run
};

/// `folder` must exist. Makes a folder of its own in it, writes `write_bytes` there and removes it.
/// Throws Error if nothing can be written there at all.
FileSystemFacts probe_file_system(const std::string& folder, std::int64_t write_bytes = 64 << 20);

/// The deepest folder of `path` that exists.
std::string existing_parent(const std::string& path);

}  // namespace longspan::io
