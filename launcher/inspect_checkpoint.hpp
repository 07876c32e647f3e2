/// What `longspan inspect` says of a checkpoint: facts and the tree of tensors from the metadata
/// alone, statistics and the state of every byte when asked for. Read next: inspect_tensors.hpp,
/// checkpoint_diff.hpp.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "launcher/terminal_style.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

struct InspectOptions {
  bool verify = false;  ///< hash every block
  bool stats = false;   ///< read every value: mean, standard deviation, norm, range, NaN, Inf
  bool unfold = false;  ///< a line for every layer, also where all are alike
  bool json = false;
  /// "": all. NAME: that tensor, or all with NAME in their names, with statistics. NAME[SLICE]: the
  /// values of that part of the one tensor that is meant.
  std::string tensor = {};
  Style style = Style();
};

/// The same facts for people and for programs.
struct CheckpointReport {
  std::string text;
  nlohmann::json json;
  ExitStatus status = ExitStatus::kDone;  ///< damaged if problems were found
};

/// `path`: a checkpoint folder or its index.h5. Reads index.h5 and looks at the sizes of the
/// shards; their bytes are read only for `verify`, `stats` and `tensor`. Throws Error: damaged if
/// the index cannot be read, usage if no tensor is called so.
CheckpointReport report_checkpoint(const std::string& path, const InspectOptions& options);

/// Prints the report, or the values if options.tensor has a slice.
ExitStatus inspect_checkpoint(const std::string& path, const InspectOptions& options);

/// Prints what `first` and `second` differ in. Status as of diff: kDone if they are equal, kFailed
/// if not. With options.verify both are hashed before, and nothing is taken as equal unread.
ExitStatus diff_checkpoints(const std::string& first, const std::string& second,
                            const InspectOptions& options);

}  // namespace longspan::launcher
