#include "launcher/run_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <thread>

#include "launcher/options.hpp"
#include "launcher/run_record.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"
#include "slurm/environment.hpp"

namespace longspan::launcher {
namespace {

/// "process 123 on node02"
std::string this_process() {
  std::array<char, 256> node = {};
  ::gethostname(node.data(), node.size() - 1);
  return fmt::format("process {} on {}", ::getpid(), node.data());
}

/// For messages and for who comes later: on a full disk it stays empty.
void write_holder(int file, const io::Attempt& attempt) {
  const std::string text = io::to_text(attempt);
  if (::ftruncate(file, 0) == 0) [[maybe_unused]]
    const auto written = ::pwrite(file, text.data(), text.size(), 0);
}

/// What the holder of the lock has written into it.
io::Attempt holder_of(int file) {
  std::array<char, 4096> text = {};
  const ssize_t bytes = ::pread(file, text.data(), text.size(), 0);
  return io::attempt_from({text.data(), static_cast<std::size_t>(std::max<ssize_t>(bytes, 0))});
}

/// Whether `path` still names this file: another start may have put its own in that place.
bool is_named(int file, const std::string& path) {
  struct stat open = {}, named = {};
  return ::fstat(file, &open) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
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

io::Attempt this_attempt() {
  io::Attempt attempt;
  attempt.process = this_process();
  if (const auto job = slurm::current_job()) {
    const char* cluster = std::getenv("SLURM_CLUSTER_NAME");
    attempt.job = cluster == nullptr ? job->id : fmt::format("{} of {}", job->id, cluster);
    attempt.restart = job->restart_count;
  }
  if (const char* launch = std::getenv(kLaunchVariable)) {
    const std::string text = launch;
    const std::size_t colon = text.rfind(':');
    attempt.launch = text.substr(0, colon);
    if (colon != std::string::npos) attempt.launch_restart = std::atoi(text.c_str() + colon + 1);
  }
  return attempt;
}

RunDirectory::RunDirectory(const std::string& path, const io::Attempt& attempt,
                           std::chrono::milliseconds patience)
    : path_(path) {
  constexpr std::string_view kWayOut = "set run.directory to a place you may write to";
  const std::string name = path + "/.lock";
  int failure = 0;
  do {
    std::error_code error;
    made_ = std::filesystem::create_directories(path, error);
    if (error) fail("cannot make the run directory {}: {}: {}", path, error.message(), kWayOut);
    lock_ = File(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    if (!lock_)
      fail("cannot write into the run directory {}: {}: {}", path, std::strerror(errno), kWayOut);
    failure = try_lock(lock_.get(), patience);
    if (failure == EWOULDBLOCK) {
      const io::Attempt holder = holder_of(lock_.get());
      if (!io::is_later_restart(attempt, holder))
        fail(
            "{} is the directory of a run that goes on ({}): wait for its end, or set "
            "run.directory to another place",
            path, io::describe(holder));
      replace_lock(attempt);
      log::warn("{} was held by {}, which this later restart replaces", path, io::describe(holder));
      return;
    }
  } while (!is_named(lock_.get(), name));
  if (failure != 0)  // some network file systems have no locks
    log::warn("{} cannot be locked ({}): do not start a second run in it", path,
              std::strerror(failure));
  else
    write_holder(lock_.get(), attempt);
}

RunDirectory::~RunDirectory() {
  if (!made_ || !is_named(lock_.get(), path_ + "/.lock")) return;
  namespace fs = std::filesystem;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error))
    if (entry.path().filename() != ".lock" && entry.path().filename() != "watch") return;
  // Who waits for the lock finds that it has no name any more, and makes both anew.
  fs::remove_all(path_ + "/watch", error);
  fs::remove(path_ + "/.lock", error);
  fs::remove(path_, error);
}

void RunDirectory::replace_lock(const io::Attempt& attempt) {
  // Locked before it gets the name: nobody finds it free. Of two that replace at once the later
  // rename stays, and io::Fence lets only one of them go on.
  const std::string name = path_ + "/.lock", mine = fmt::format("{}.{}.new", name, attempt.process);
  lock_ = File(::open(mine.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock_ || try_lock(lock_.get(), {}) != 0)
    fail("cannot replace {}: {}", name, std::strerror(errno));
  write_holder(lock_.get(), attempt);
  if (::rename(mine.c_str(), name.c_str()) != 0)
    fail("cannot replace {}: {}", name, std::strerror(errno));
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
