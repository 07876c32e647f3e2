/// `longspan inspect` of a checkpoint of 2000 tensors in 64 shards, 102 GB by its metadata (the
/// shards are holes): from the command to its end, of the table and of --json. Asked: 0.3 s.
/// Beside it the processor time, which other programs on the machine disturb less, and the
/// program's start alone (--help), which no listing can be faster than. Usage: bench_inspect
/// [--tiny] [TENSORS SHARDS]
#include <fmt/format.h>

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "support/peak.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"
#include "tests/io/large_checkpoint.hpp"

using namespace longspan;

namespace {

/// Processor seconds of all children so far.
double children_seconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_CHILDREN, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool tiny = !arguments.empty() && arguments[0] == "--tiny";
  const bool sized = !tiny && arguments.size() == 2;
  const int tensors = tiny ? 30 : sized ? std::atoi(arguments[0].c_str()) : 2000;
  const int shards = tiny ? 4 : sized ? std::atoi(arguments[1].c_str()) : 64;
  const int rounds = tiny ? 1 : 9;
  const testing_support::TemporaryDirectory folder;
  const std::string path = folder.file("step-0000001000");
  const std::int64_t bytes = io::testing::write_large_checkpoint(path, tensors, shards);

  const std::vector<std::vector<std::string>> commands = {
      {"--help"}, {"inspect", path}, {"inspect", path, "--json"}};
  std::vector<std::vector<double>> seconds(commands.size()), processor(commands.size());
  for (int round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < commands.size(); ++i) {
      const double before = children_seconds();
      const auto begin = std::chrono::steady_clock::now();
      const auto result = testing_support::longspan(commands[i]);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      seconds[i].push_back(taken.count());
      processor[i].push_back(children_seconds() - before);
      if (result.status != 0) {
        fmt::print(stderr, "longspan {} failed: {}\n", commands[i][0], result.err);
        return 1;
      }
    }
  fmt::print("{} tensors, {} shards, {}, median of {} rounds in turns\n", tensors, shards,
             io::format_bytes(bytes), rounds);
  const char* const names[] = {"longspan --help", "inspect", "inspect --json"};
  for (std::size_t i = 0; i < commands.size(); ++i)
    fmt::print("  {:<16} {:.3f} s (fastest {:.3f}), processor {:.3f} s\n", names[i],
               testing_support::median(seconds[i]),
               *std::min_element(seconds[i].begin(), seconds[i].end()),
               testing_support::median(processor[i]));
  return 0;
}
