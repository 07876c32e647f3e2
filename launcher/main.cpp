/// longspan: argv to a subcommand, and every error to one line and an exit status. The only place that ends the process.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "parallel/abort.hpp"
#include "parallel/log.hpp"

using namespace longspan;

namespace {

void print_overview() {
  fmt::print("longspan: distributed training of transformers on very long sequences\n\n");
  for (const auto& command : launcher::commands()) fmt::print("  longspan {:<10} {}\n", command.name, command.help);
  fmt::print("\nEvery command has --help with an example. Start: longspan prepare --help\n");
}

ExitStatus run(const std::vector<std::string>& words) {
  if (words.empty()) fail_usage("which command? longspan --help lists them");
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    print_overview();
    return ExitStatus::kDone;
  }
  std::vector<std::string> names;
  for (const auto& command : launcher::commands()) {
    if (command.name == words[0]) return command.run({words.begin() + 1, words.end()});
    names.emplace_back(command.name);
  }
  const std::string near = launcher::nearest(words[0], names);
  fail_usage("there is no command '{}'{}", words[0],
             near.empty() ? ": longspan --help lists them" : ": did you mean " + near + "?");
}

/// One line per problem on stderr; ranks that all know the error leave it to rank 0.
void report(const char* message) {
  if (log::rank() == 0) std::fprintf(stderr, "longspan: %s\n", message);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return static_cast<int>(run({argv + 1, argv + argc}));
  } catch (const AgreedError& e) {
    report(e.what());
    return static_cast<int>(e.status());
  } catch (const Error& e) {
    if (parallel::has_peers()) parallel::abort_job(e.what(), static_cast<int>(e.status()));
    report(e.what());
    return static_cast<int>(e.status());
  } catch (const std::exception& e) {
    if (parallel::has_peers()) parallel::abort_job(e.what(), static_cast<int>(ExitStatus::kFailed));
    report(e.what());
    return static_cast<int>(ExitStatus::kFailed);
  }
}
