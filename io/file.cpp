#include "io/file.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::io {
namespace {

/// One call moves at most 2 GiB on Linux; smaller pieces also keep signals and progress alive.
constexpr std::int64_t kPiece = std::int64_t{64} << 20;

int sync_retrying(int descriptor) {
  int result = 0;
  do result = ::fsync(descriptor);
  while (result != 0 && errno == EINTR);
  return result;
}

Descriptor open_descriptor(const std::string& path, int flags) {
  int raw = -1;
  do raw = ::open(path.c_str(), flags | O_CLOEXEC);
  while (raw < 0 && errno == EINTR);
  return Descriptor(raw);
}

void sync_path(const std::string& path, int flags) {
  const Descriptor descriptor = open_descriptor(path, flags);
  // Some file systems do not sync folders (EINVAL): their renames are durable in order anyway.
  if (!descriptor || (sync_retrying(descriptor.get()) != 0 && errno != EINVAL))
    fail_errno(path, "cannot sync", errno);
}

/// Of the nearest folder above `path` that exists.
struct statvfs file_system_of(const std::string& path) {
  struct statvfs system = {};
  std::string place = path;
  while (::statvfs(place.c_str(), &system) != 0 && place != "." && place != "/")
    place = parent_path(place);
  return system;
}

std::string space_left(const std::string& path) {
  const struct statvfs system = file_system_of(path);
  if (system.f_files > 0 && system.f_favail == 0)
    return "its file system has no room for more files";
  return format_bytes(free_bytes(path)) + " free";
}

}  // namespace

void close_descriptor(int descriptor) {
  ::close(descriptor);
}

void fail_errno(const std::string& path, const std::string& action, int error_number) {
  const char* reason = std::strerror(error_number);
  switch (error_number) {
    case ENOSPC:
      fail("{}: {}: {} ({}): free space there, or write elsewhere", path, action, reason,
           space_left(path));
    case EDQUOT:
      fail("{}: {}: {}: remove files or ask for a larger quota, or write elsewhere", path, action,
           reason);
    case EFBIG:
      fail("{}: {}: {}: raise the limit on file sizes (ulimit -f)", path, action, reason);
    case EACCES:
    case EPERM:
    case EROFS:
      fail("{}: {}: {}: write elsewhere, or change the permissions", path, action, reason);
    default:
      fail("{}: {}: {}", path, action, reason);
  }
}

RawFile::RawFile(std::string path, Descriptor descriptor)
    : path_(std::move(path)), descriptor_(std::move(descriptor)) {}

RawFile RawFile::open(const std::string& path, Mode mode) {
  Descriptor descriptor = open_descriptor(path, mode == Mode::kRead ? O_RDONLY : O_WRONLY);
  if (!descriptor && mode == Mode::kRead)
    fail_damaged("{}: cannot open: {}", path, std::strerror(errno));
  if (!descriptor) fail_errno(path, "cannot open for writing", errno);
  return RawFile(path, std::move(descriptor));
}

RawFile RawFile::create(const std::string& path) {
  Descriptor descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!descriptor) fail_errno(path, "cannot create", errno);
  return RawFile(path, std::move(descriptor));
}

std::int64_t RawFile::size() const {
  struct stat found = {};
  if (::fstat(descriptor_.get(), &found) != 0) fail_errno(path_, "cannot stat", errno);
  return found.st_size;
}

void RawFile::read(void* data, std::int64_t bytes, std::int64_t offset) const {
  auto* out = static_cast<char*>(data);
  for (std::int64_t done = 0; done < bytes;) {
    const auto n = ::pread(descriptor_.get(), out + done,
                           static_cast<std::size_t>(std::min(kPiece, bytes - done)), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      fail_damaged("{}: cannot read at byte {}: {}", path_, offset + done, std::strerror(errno));
    if (n == 0)
      fail_damaged("{}: ends at byte {}, {} were expected", path_, offset + done, offset + bytes);
    done += n;
  }
}

void RawFile::write(const void* data, std::int64_t bytes, std::int64_t offset) {
  const auto* in = static_cast<const char*>(data);
  for (std::int64_t done = 0; done < bytes;) {
    const auto n =
        ::pwrite(descriptor_.get(), in + done,
                 static_cast<std::size_t>(std::min(kPiece, bytes - done)), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(path_, fmt::format("cannot write {}", format_bytes(bytes - done)), errno);
    done += n;
  }
}

void RawFile::reserve(std::int64_t bytes) {
#ifdef __linux__
  // Not posix_fallocate: where the file system cannot allocate, that writes a byte into every
  // block.
  int result = 0;
  do result = ::fallocate(descriptor_.get(), 0, 0, bytes);
  while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
    fail_errno(path_, fmt::format("cannot reserve {}", format_bytes(bytes)), errno);
#else
  static_cast<void>(bytes);
#endif
}

void RawFile::start_writeback(std::int64_t offset, std::int64_t bytes) {
#ifdef __linux__
  ::sync_file_range(descriptor_.get(), offset, bytes, SYNC_FILE_RANGE_WRITE);
#else
  static_cast<void>(offset);
  static_cast<void>(bytes);
#endif
}

void RawFile::sync() {
  if (sync_retrying(descriptor_.get()) != 0) fail_errno(path_, "cannot sync", errno);
}

void RawFile::close() {
  if (::close(descriptor_.release()) != 0 && errno != EINTR)
    fail_errno(path_, "cannot close", errno);
}

bool path_exists(const std::string& path) {
  struct stat found = {};
  return ::stat(path.c_str(), &found) == 0;
}

bool is_directory(const std::string& path) {
  struct stat found = {};
  return ::stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode);
}

bool is_regular_file(const std::string& path) {
  struct stat found = {};
  return ::stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
}

std::int64_t file_size(const std::string& path) {
  struct stat found = {};
  return ::stat(path.c_str(), &found) == 0 ? found.st_size : -1;
}

std::vector<std::string> list_directory(const std::string& path) {
  const Handle<DIR*, nullptr, [](DIR* raw) { ::closedir(raw); }> folder(::opendir(path.c_str()));
  std::vector<std::string> names;
  if (!folder) {
    if (errno == ENOENT || errno == ENOTDIR) return names;
    fail_errno(path, "cannot list", errno);
  }
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail_errno(path, "cannot create the folder", error.value());
  if (!is_directory(path)) fail_errno(path, "cannot create the folder", ENOTDIR);
}

void make_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0777) != 0) fail_errno(path, "cannot create the folder", errno);
}

void remove_path(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) fail_errno(path, "cannot remove", error.value());
}

void rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    fail_errno(from, fmt::format("cannot rename to {}", to), errno);
}

void sync_directory(const std::string& path) {
  sync_path(path, O_RDONLY | O_DIRECTORY);
}
void sync_file(const std::string& path) {
  sync_path(path, O_RDONLY);
}

void replace_symlink(const std::string& target, const std::string& link,
                     const std::string& temporary) {
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT)
    fail_errno(temporary, "cannot remove", errno);
  if (::symlink(target.c_str(), temporary.c_str()) != 0)
    fail_errno(temporary, "cannot create the link", errno);
  rename_path(temporary, link);
}

std::string symlink_target(const std::string& path) {
  std::error_code none;
  return std::filesystem::read_symlink(path, none).string();
}

std::int64_t free_bytes(const std::string& path) {
  const struct statvfs system = file_system_of(path);
  return static_cast<std::int64_t>(system.f_bavail) * static_cast<std::int64_t>(system.f_frsize);
}

void require_free_space(const std::string& path, std::int64_t bytes, const std::string& what) {
  const std::int64_t free = free_bytes(path);
  if (free < bytes)
    fail("{}: {} needs {}, {} are free: free {} there, or write elsewhere", path, what,
         format_bytes(bytes), format_bytes(free), format_bytes(bytes - free));
}

std::string parent_path(const std::string& path) {
  const auto end = path.find_last_not_of('/');
  const auto slash = end == std::string::npos ? std::string::npos : path.rfind('/', end);
  if (slash == std::string::npos) return path.starts_with('/') ? "/" : ".";
  const auto last = path.find_last_not_of('/', slash);
  return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

std::string base_name(const std::string& path) {
  const auto end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "" : "/";
  const auto slash = path.rfind('/', end);
  const auto begin = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(begin, end + 1 - begin);
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"kB", "MB", "GB", "TB", "PB"};
  if (bytes < 1000 && bytes > -1000) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (value /= 1000; (value >= 999.95 || value <= -999.95) && unit + 1 < kUnits.size();
       value /= 1000)
    ++unit;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace longspan::io
