/// `longspan inspect --tensor 'NAME[SLICE]'`: the values themselves, read piece by piece, so that
/// neither the tensor nor the slice has to fit into memory.
#pragma once

#include <cstdio>
#include <string>

#include "io/checkpoint_reader.hpp"
#include "launcher/tensor_slice.hpp"

namespace longspan::launcher {

/// One element as text that reads back to the same bits: "0.1", "-3e-05", "nan", "-inf", "17".
std::string value_text(DType dtype, const void* element);

/// Prints the elements of a tensor for people: a line per row, headed by its place in the tensor,
/// broken at `width` columns (0 = never). Throws Error (damaged).
void print_values(io::CheckpointReader& reader, const io::TensorEntry& tensor,
                  const TensorSlice& slice, std::size_t width, std::FILE* out = stdout);

/// The same as one JSON object {"kind": "tensor", "path", "step", "name", "dtype", "global_shape",
/// "slice", "shape", "values"}; values are nested lists of `shape`, as NumPy's tolist() has them,
/// with "nan", "inf" and "-inf" as strings.
void print_values_json(io::CheckpointReader& reader, const std::string& path,
                       const io::TensorEntry& tensor, const TensorSlice& slice,
                       std::FILE* out = stdout);

}  // namespace longspan::launcher
