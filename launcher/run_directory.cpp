#include "launcher/run_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <thread>

#include "launcher/options.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// "process 123 on node02"
std::string this_process() {
  std::array<char, 256> node = {};
  ::gethostname(node.data(), node.size() - 1);
  return fmt::format("process {} on {}", ::getpid(), node.data());
}

/// What the holder of the lock has written into it.
std::string holder_of(int file) {
  std::array<char, 512> text = {};
  const ssize_t bytes = ::pread(file, text.data(), text.size(), 0);
  return bytes > 0 ? std::string(text.data(), static_cast<std::size_t>(bytes)) : "another process";
}

/// 0, or why not (errno).
int try_lock(int file, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  for (;;) {
    if (::flock(file, LOCK_EX | LOCK_NB) == 0) return 0;
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK || std::chrono::steady_clock::now() >= end) return errno;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

}  // namespace

void RunDirectory::close_file(int file) {
  ::close(file);
}

RunDirectory::RunDirectory(const std::string& path, std::chrono::milliseconds patience)
    : path_(path) {
  constexpr std::string_view kWayOut = "set run.directory to a place you may write to";
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail("cannot make the run directory {}: {}: {}", path, error.message(), kWayOut);
  const std::string name = path + "/.lock";
  lock_ = Handle<int, -1, close_file>(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock_)
    fail("cannot write into the run directory {}: {}: {}", path, std::strerror(errno), kWayOut);
  const int failure = try_lock(lock_.get(), patience);
  if (failure == EWOULDBLOCK)
    fail(
        "{} is the directory of a run that goes on ({}): wait for its end, or set run.directory "
        "to another place",
        path, holder_of(lock_.get()));
  if (failure != 0) {  // some network file systems have no locks
    log::warn("{} cannot be locked ({}): do not start a second run in it", path,
              std::strerror(failure));
    return;
  }
  // For the message above only: on a full disk it stays empty.
  const std::string me = this_process();
  if (::ftruncate(lock_.get(), 0) == 0) [[maybe_unused]]
    const auto written = ::pwrite(lock_.get(), me.data(), me.size(), 0);
}

void RunDirectory::write_config(const RunConfig& config, const std::string& comment) const {
  write_file("config.ini", fmt::format("# {}\n{}", comment, to_ini(config)));
}

void RunDirectory::write_file(const std::string& file_name, const std::string& text) const {
  const std::string name = path_ + "/" + file_name, temporary = name + ".new";
  std::FILE* file = std::fopen(temporary.c_str(), "we");
  bool good = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  good = good && std::fflush(file) == 0;
  const int failure = errno;
  if (file != nullptr) std::fclose(file);
  if (good && std::rename(temporary.c_str(), name.c_str()) == 0) return;
  const int reason = good ? errno : failure;
  std::remove(temporary.c_str());
  fail("cannot write {}: {}: make room there, or set run.directory to another place", name,
       std::strerror(reason));
}

}  // namespace longspan::launcher
