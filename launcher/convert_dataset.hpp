/// The dataset half of `longspan convert FROM TO`: a dataset to NumPy, raw, Megatron or llm.c token
/// files and back. Memory grows with the documents, not with the tokens; the output gets its name
/// when it is complete. Read next: io/token_files.hpp, io/prepare_dataset.hpp.
#pragma once

#include <string>
#include <vector>

#include "launcher/arguments.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

/// Whether FROM is a dataset of ours (an HDF5 file with its format) or a token file: .npy, .bin,
/// .idx.
bool is_dataset_conversion(const std::string& from);

/// What convert_dataset understands besides FROM, TO, --force and --json.
std::vector<Flag> dataset_conversion_flags();

/// `arguments`: of `longspan convert`, its two positional ones FROM and TO, with the flags above.
/// Throws Error: usage for what does not go together, damaged for FROM, failed for the disk.
ExitStatus convert_dataset(const Arguments& arguments);

}  // namespace longspan::launcher
