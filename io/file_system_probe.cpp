#include "io/file_system_probe.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "io/file.hpp"

namespace longspan::io {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct KnownType {
  long magic;
  const char* name;
  bool shared;
};
/// linux/magic.h has those of the kernel; the clusters' own ones are in their modules' sources.
constexpr KnownType kTypes[] = {{EXT4_SUPER_MAGIC, "ext4", false},
                                {0x58465342, "xfs", false},
                                {BTRFS_SUPER_MAGIC, "btrfs", false},
                                {TMPFS_MAGIC, "tmpfs", false},
                                {OVERLAYFS_SUPER_MAGIC, "overlay", false},
                                {0x2fc12fc1, "zfs", false},
                                {NFS_SUPER_MAGIC, "nfs", true},
                                {0x0BD00BD0, "lustre", true},
                                {0x47504653, "gpfs", true},
                                {0x19830326, "beegfs", true},
                                {0x00c36400, "ceph", true},
                                {0xFF534D42, "cifs", true},
                                {0x65735546, "fuse", true},
                                {0x01021997, "9p", true},
                                {0xaad7aaea, "panfs", true},
                                {0x20030528, "orangefs", true}};

/// A folder that goes with its owner.
class ProbeFolder {
 public:
  explicit ProbeFolder(const std::string& parent)
      : path_(fmt::format("{}/.doctor-{}", parent, ::getpid())) {
    remove_path(path_);
    make_directory(path_);
  }
  ~ProbeFolder() {
    try {
      remove_path(path_);
    } catch (const std::exception&) {
      // A file system that has just failed its tests.
    }
  }
  ProbeFolder(const ProbeFolder&) = delete;
  ProbeFolder& operator=(const ProbeFolder&) = delete;
  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string system_error() {
  return std::strerror(errno);
}

std::string try_locking(const std::string& path) {
  const Descriptor one(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  const Descriptor two(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!one || !two) return "cannot open a file twice: " + system_error();
  if (::flock(one.get(), LOCK_EX | LOCK_NB) != 0) return "flock: " + system_error();
  if (::flock(two.get(), LOCK_EX | LOCK_NB) == 0) return "flock lets two have the same lock";
  return "";
}

std::string try_renaming(const std::string& from, const std::string& to) {
  std::ofstream(from) << "new";
  std::ofstream(to) << "old";
  if (::rename(from.c_str(), to.c_str()) != 0) return "rename: " + system_error();
  std::string text;
  std::ifstream(to) >> text;
  if (text != "new") return "a renamed file does not show what was written to it";
  if (path_exists(from)) return "a renamed file is still there under its old name";
  return "";
}

std::string try_linking(const std::string& target, const std::string& link) {
  if (::symlink(base_name(target).c_str(), link.c_str()) != 0) return "symlink: " + system_error();
  return symlink_target(link) == base_name(target) ? "" : "a symbolic link points elsewhere";
}

bool try_direct(const std::string& path) {
  constexpr std::size_t kBlock = 4096;
  const std::unique_ptr<void, decltype(&std::free)> block(std::aligned_alloc(kBlock, kBlock),
                                                          &std::free);
  std::memset(block.get(), 1, kBlock);
  const Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0666));
  return file && ::pwrite(file.get(), block.get(), kBlock, 0) == static_cast<ssize_t>(kBlock) &&
         ::pread(file.get(), block.get(), kBlock, 0) == static_cast<ssize_t>(kBlock);
}

double median_sync(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (!file) fail_errno(path, "cannot create", errno);
  std::vector<double> seconds;
  for (int round = 0; round < 5; ++round) {
    const char block[512] = {};
    if (::pwrite(file.get(), block, sizeof block, 0) < 0) fail_errno(path, "cannot write", errno);
    const auto begin = Clock::now();
    if (::fsync(file.get()) != 0) fail_errno(path, "cannot sync", errno);
    seconds.push_back(seconds_since(begin));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

double write_speed(const std::string& path, std::int64_t bytes) {
  constexpr std::int64_t kPiece = 4 << 20;
  const std::vector<char> piece(static_cast<std::size_t>(kPiece), 1);
  const auto begin = Clock::now();
  { const Descriptor made(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)); }
  RawFile file = RawFile::open(path, RawFile::Mode::kWrite);
  for (std::int64_t at = 0; at < bytes; at += kPiece)
    file.write(piece.data(), std::min(kPiece, bytes - at), at);
  file.sync();
  return static_cast<double>(bytes) / std::max(1e-9, seconds_since(begin));
}

}  // namespace

FileSystemFacts probe_file_system(const std::string& folder, std::int64_t write_bytes) {
  FileSystemFacts facts;
  struct statfs type {};
  if (::statfs(folder.c_str(), &type) != 0) fail_errno(folder, "cannot ask its file system", errno);
  const long magic = static_cast<long>(type.f_type) & 0xFFFFFFFFL;
  const auto known = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const KnownType& t) { return t.magic == magic; });
  facts.type = known == std::end(kTypes) ? fmt::format("{:#x}", magic) : known->name;
  facts.shared = known != std::end(kTypes) && known->shared;
  struct statvfs space {};
  if (::statvfs(folder.c_str(), &space) != 0) fail_errno(folder, "cannot ask its space", errno);
  facts.free_bytes = free_bytes(folder);
  facts.total_bytes =
      static_cast<std::int64_t>(space.f_blocks) * static_cast<std::int64_t>(space.f_frsize);
  if (space.f_files > 0) facts.free_files = static_cast<std::int64_t>(space.f_favail);

  const ProbeFolder probe(folder);
  facts.locking = try_locking(probe.file("lock"));
  facts.renaming = try_renaming(probe.file("from"), probe.file("to"));
  facts.linking = try_linking(probe.file("to"), probe.file("link"));
  facts.direct = try_direct(probe.file("direct"));
  facts.sync_seconds = median_sync(probe.file("sync"));
  const std::int64_t affordable = std::min(write_bytes, facts.free_bytes / 4);
  if (affordable > 0) facts.write_bytes_per_second = write_speed(probe.file("large"), affordable);
  return facts;
}

std::string existing_parent(const std::string& path) {
  std::string folder = path.empty() ? "." : path;
  while (!is_directory(folder)) {
    const std::string above = parent_path(folder);
    if (above == folder) return above;
    folder = above;
  }
  return folder;
}

}  // namespace longspan::io
