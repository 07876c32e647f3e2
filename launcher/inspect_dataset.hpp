/// The dataset view of `longspan inspect`.
#pragma once

#include <string>

#include "parallel/error.hpp"

namespace longspan::launcher {

/// Prints counts, splits, document lengths and token frequencies of the dataset at `path` to
/// stdout: for people, or as one JSON object. With `verify` every block is hashed. Throws Error
/// (damaged) for a file that is no dataset or does not verify.
ExitStatus inspect_dataset(const std::string& path, bool verify, bool json);

/// A bar of `share` (0 to 1) of `width` columns, in eighths of a column; anything above 0 shows.
std::string bar(double share, int width);

}  // namespace longspan::launcher
