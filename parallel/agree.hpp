/// One outcome for all ranks: a rank that left early would strand the others in their next
/// collective.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "parallel/communicator.hpp"
#include "parallel/error.hpp"

namespace longspan {

/// Runs `work` on every rank; if it threw anywhere, every rank throws the same AgreedError with the
/// message and exit status of the lowest failing rank. Collective over `comm`; `work` itself must
/// not communicate.
template <class Work>
void agree(const Communicator& comm, Work&& work) {
  std::optional<std::string> failure;
  ExitStatus status = ExitStatus::kFailed;
  try {
    std::forward<Work>(work)();
  } catch (const Error& e) {
    failure = e.what();
    status = e.status();
  } catch (const std::exception& e) {
    failure = e.what();
  }
  const std::int64_t first = comm.all_reduce_min(std::int64_t{failure ? comm.rank() : comm.size()});
  if (first == comm.size()) return;
  const int root = static_cast<int>(first);
  const std::string message = comm.broadcast(failure.value_or(""), root);
  const auto agreed =
      static_cast<ExitStatus>(comm.broadcast(static_cast<std::int64_t>(status), root));
  throw AgreedError(message, agreed);
}

}  // namespace longspan
