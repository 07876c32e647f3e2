#include "parallel/log.hpp"

#include <cstdio>
#include <fstream>
#include <mutex>

#include "parallel/error.hpp"

namespace longspan::log {
namespace {

int my_rank = 0;
std::mutex mutex;
std::ofstream file;

void to_file(std::string_view text) {
  if (!file.is_open()) return;
  file.clear();  // a disk that was full may have room again
  file << text << std::endl;
}

}  // namespace

void set_rank(int rank) {
  my_rank = rank;
}
int rank() {
  return my_rank;
}

void open_file(const std::string& path) {
  std::lock_guard lock(mutex);
  file.close();
  file.clear();
  file.open(path, std::ios::app);
  if (!file) fail("cannot write the log file {}: is the folder writable?", path);
}

void close_file() {
  std::lock_guard lock(mutex);
  file.close();
}

void line(std::string_view text) {
  if (my_rank != 0) return;
  std::lock_guard lock(mutex);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);  // a job's log is read while it runs
  to_file(text);
}

void warning(std::string_view text) {
  if (my_rank != 0) return;
  std::lock_guard lock(mutex);
  std::fprintf(stderr, "longspan: warning: %.*s\n", static_cast<int>(text.size()), text.data());
  to_file(fmt::format("warning: {}", text));
}

}  // namespace longspan::log
