/// Errors that carry their exit status. A message is one line, gives the values and the way out.
/// Read next: agree.hpp, which turns one rank's error into everybody's.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace longspan {

/// What the process returns to its caller; design.md section 2.
enum class ExitStatus : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,     ///< wrong usage or configuration
  kDamaged = 3,   ///< damaged or incompatible file
  kRequeue = 75,  ///< stopped early on purpose after a good checkpoint
};

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ExitStatus status = ExitStatus::kFailed)
      : std::runtime_error(message), status_(status) {}
  ExitStatus status() const { return status_; }

 private:
  ExitStatus status_;
};

/// The same error on every rank of the world: rank 0 prints it, all leave together.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Text from a file for a line of output: control characters (which may end the line, or command
/// the terminal) and bytes that are not UTF-8 become \xNN; longer than `most` bytes ends in "...".
std::string printable(std::string_view text, std::size_t most = 2000);

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(fmt::format(text, std::forward<Args>(args)...), ExitStatus::kUsage);
}
/// Of a file that may come from others: what it says of itself is shown with printable().
template <class... Args>
[[noreturn]] void fail_damaged(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(printable(fmt::format(text, std::forward<Args>(args)...)), ExitStatus::kDamaged);
}

namespace parallel {
/// Throws Error with MPI's own text if `code` is not MPI_SUCCESS. `what` names the call.
void check_mpi(int code, const char* what);
}  // namespace parallel

}  // namespace longspan
