/// What `longspan inspect` says of a checkpoint: facts, tensors with statistics, and with --verify
/// the state of every byte.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "parallel/error.hpp"

namespace longspan::launcher {

/// The same facts for people and for programs.
struct CheckpointReport {
  std::string text;
  nlohmann::json json;
  ExitStatus status = ExitStatus::kDone;  ///< damaged if problems were found
};

/// `path`: a checkpoint folder or its index.h5. `tensor`: "" lists the model's weights, with
/// statistics if the checkpoint is below 2 GB, and sums up the rest; a name, or a part of names,
/// shows those tensors in full. Throws Error: damaged if the index cannot be read, usage if no
/// tensor is called so.
CheckpointReport report_checkpoint(const std::string& path, bool verify, const std::string& tensor);

/// Prints the report.
ExitStatus inspect_checkpoint(const std::string& path, bool verify, bool json,
                              const std::string& tensor);

}  // namespace longspan::launcher
