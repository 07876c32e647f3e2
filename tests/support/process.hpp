/// Runs the program as a user would, and keeps what it said.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace longspan::testing_support {

struct ProcessResult {
  int status = -1;  ///< exit status; 128 + signal if it was killed
  std::string out, err;
};

/// Runs `arguments` (arguments[0] is looked up in PATH) and waits. When `interrupt_when` is not
/// empty, `signal` is sent to the process once that text has appeared on its stdout.
ProcessResult run_process(const std::vector<std::string>& arguments,
                          const std::string& interrupt_when = "", int signal = 0);

/// The program just built, with these arguments.
ProcessResult longspan(std::vector<std::string> arguments);
std::string longspan_path();

/// Arguments of `longspan launch` (without the program) for configs/tiny.ini on `ranks` ranks, with
/// sequences of 64 tokens of `data` into `run`; `settings`: more words, blanks between them.
std::vector<std::string> launch_tiny(int ranks, const std::string& data, const std::string& run,
                                     const std::string& settings,
                                     const std::vector<std::string>& more = {});

/// Processes that run `longspan <command>` with `word` among its arguments: "train" and a run
/// directory finds the ranks of a run, "launch" what started them.
std::vector<pid_t> processes_of(const std::string& command, const std::string& word);

int count_lines(const std::string& text);

}  // namespace longspan::testing_support
