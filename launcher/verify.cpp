/// `longspan verify`: starts itself on every rank count, one after the other; rank 0 leaves its
/// rows in a file.
#include "launcher/verify.hpp"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>

#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/compute.hpp"
#include "launcher/launch_ranks.hpp"
#include "launcher/machine.hpp"
#include "launcher/progress.hpp"
#include "launcher/verify_attention.hpp"
#include "launcher/verify_training.hpp"
#include "parallel/agree.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

using Clock = std::chrono::steady_clock;

/// How verify calls itself on the ranks: not for people, so not in the help.
constexpr const char* kOnRanks = "--on-ranks";
constexpr int kMostRanks = 64;
constexpr std::int64_t kMostTokens = 1 << 15, kMostSteps = 10000;

/// A folder for the rows of the ranks, gone with this object.
class RowsFolder {
 public:
  RowsFolder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "longspan-verify-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      fail("cannot make a folder like {}: set TMPDIR to one that can be written", pattern);
    path_ = pattern;
  }
  ~RowsFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  RowsFolder(const RowsFolder&) = delete;
  RowsFolder& operator=(const RowsFolder&) = delete;
  std::string file(int ranks) const { return fmt::format("{}/{}.json", path_, ranks); }

 private:
  std::string path_;
};

VerifyScope scope_of(const Arguments& args) {
  if (args.has("quick") && args.has("full"))
    fail_usage("verify: --quick and --full exclude each other: give one of them, or neither");
  return {args.integer("tokens"),
          args.has("quick")  ? Extent::kQuick
          : args.has("full") ? Extent::kFull
                             : Extent::kUsual,
          args.integer("steps")};
}

/// One of the processes that verify starts: measures, and rank 0 writes the rows.
ExitStatus verify_on_ranks(const std::vector<std::string>& arguments) {
  const Arguments args({arguments.begin() + 1, arguments.end()}, "verify", "",
                       {{"rows", "FILE", ""},
                        {"tokens", "N", ""},
                        {"steps", "N", ""},
                        {"quick", "", ""},
                        {"full", "", ""},
                        {"device", "NAME", ""},
                        {"communication", "NAME", ""}},
                       "");
  // The wish to stop, as launch passes it on: there is nothing to save.
  std::signal(SIGUSR1, [](int) { ::_exit(static_cast<int>(ExitStatus::kRequeue)); });
  const MpiRuntime mpi;
  const Communicator world = Communicator::world();
  log::set_rank(world.rank());
  set_threads(0, world);
  const VerifyScope scope = scope_of(args);
  VerifyReport report;
  RunSettings run;
  run.device = args.text("device");
  run.communication = args.text("communication");
  run.share_gpu = true;  // what is checked here is the answer, not the speed
  const Compute compute = open_compute(run, world);
  report.attention = measure_attention(world, scope, compute);
  report.training = measure_training(world, scope, compute);
  if (world.rank() == 0) {
    std::ofstream file(args.text("rows"));
    file << rows_to_text(report) << std::flush;
    if (!file) fail("cannot write {}: is the folder full?", args.text("rows"));
  }
  return ExitStatus::kDone;
}

VerifyReport start_on(int ranks, const VerifyScope& scope, const Arguments& args,
                      const std::string& rows_file) {
  std::vector<std::string> words = {"verify", kOnRanks, "--rows", rows_file};
  words.insert(words.end(), {"--tokens", std::to_string(scope.tokens)});
  words.insert(words.end(), {"--steps", std::to_string(scope.steps)});
  words.insert(words.end(), {"--device", args.text("device")});
  words.insert(words.end(), {"--communication", args.text("communication")});
  if (scope.extent != Extent::kUsual) words.push_back(fmt::format("--{}", name_of(scope.extent)));
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const Places here = {.cores = usable_cores(), .root = ::geteuid() == 0};
  const int status = run_and_watch(mpirun_command(ranks, here, self, words));
  if (status == static_cast<int>(ExitStatus::kRequeue) || status == 128 + SIGINT)
    fail("verify was stopped while it measured {}: nothing is proven", counted(ranks, "rank"));
  if (status != 0)
    fail("verify: {} ended with status {}: what they said stands above", counted(ranks, "rank"),
         status);
  std::ifstream file(rows_file);
  return rows_from_text({std::istreambuf_iterator<char>(file), {}}, ranks, scope);
}

}  // namespace

std::vector<int> parse_ranks(const std::string& text) {
  std::set<int> ranks;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    int count = 0;
    const auto [rest, error] = std::from_chars(text.data() + begin, text.data() + end, count);
    if (error != std::errc() || rest != text.data() + end || count < 1 || count > kMostRanks)
      fail_usage(
          "verify: --ranks {}: it must be numbers from 1 to {} with commas between them, like "
          "1,2,4",
          text, kMostRanks);
    ranks.insert(count);
    begin = end + 1;
  }
  return {ranks.begin(), ranks.end()};
}

ExitStatus verify_command(const std::vector<std::string>& arguments) {
  if (!arguments.empty() && arguments[0] == kOnRanks) return verify_on_ranks(arguments);
  const Arguments args(
      arguments, "verify",
      "proves on this machine that sharding does not change the answer: attention by every scheme, "
      "rank count, layout, mask and precision against dense attention in double precision, and the "
      "losses of small models on every mesh against one rank. Exit status 1 if any bound is broken",
      {{"ranks", "N,N,...", "rank counts, each started with mpirun", "1,2,3,4"},
       {"tokens", "N", "length of the attention problems; time grows with its square",
        std::to_string(VerifyScope().tokens)},
       {"steps", "N", "optimizer steps of every training run", std::to_string(VerifyScope().steps)},
       {"quick", "", "one case of every kind: a few seconds"},
       {"full", "", "all combinations: a few minutes"},
       {"device", "NAME", "where the ranks compute: cpu, cuda or auto", "cpu"},
       {"communication", "NAME", "between GPUs: nccl, staged or auto", "auto"},
       {"json", "", "one JSON object instead of tables"}},
      "longspan verify --ranks 1,2,4");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.positional().empty())
    fail_usage("verify: '{}' is not expected: rank counts are given as --ranks 1,2,4",
               args.positional()[0]);
  const std::vector<int> rank_counts = parse_ranks(args.text("ranks"));
  const VerifyScope scope = scope_of(args);
  if (scope.tokens < 16 || scope.tokens > kMostTokens)
    fail_usage(
        "verify: --tokens {}: it must be between 16 and {}; the dense attention it is compared "
        "with takes time with its square",
        scope.tokens, kMostTokens);

  if (scope.steps < 1 || scope.steps > kMostSteps)
    fail_usage("verify: --steps {}: it must be between 1 and {}", scope.steps, kMostSteps);

  const auto begin = Clock::now();
  const RowsFolder folder;
  VerifyReport report;
  report.steps = scope.steps;
  {
    std::int64_t total = 0, done = 0;
    const auto rows_of = [&](int ranks) {
      return static_cast<std::int64_t>(attention_cases(ranks, scope).size() +
                                       training_cases(ranks, scope).size());
    };
    for (const int ranks : rank_counts) total += rows_of(ranks);
    Progress progress;
    for (const int ranks : rank_counts) {
      progress.update("measuring", "rows", done, total);
      VerifyReport part = start_on(ranks, scope, args, folder.file(ranks));
      report.attention.insert(report.attention.end(), part.attention.begin(), part.attention.end());
      report.training.insert(report.training.end(), part.training.begin(), part.training.end());
      done += rows_of(ranks);
    }
  }
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const bool colour = ::isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
  log::line(args.has("json") ? report_json(report) : report_text(report, colour));
  return report_status(report);
}

}  // namespace longspan::launcher
