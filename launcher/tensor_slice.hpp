/// Parts of tensors as people write them: `model/embedding.weight[0:4, -3:]`, as in NumPy with
/// steps of 1; and the walk over a part in pieces that fit into memory. Pure. Read next:
/// inspect_values.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "parallel/array.hpp"

namespace longspan::launcher {

struct TensorRequest {
  std::string name;
  std::optional<std::string> slice;  ///< what stands in the brackets; none: no brackets
};
/// "NAME" or "NAME[SLICE]". Throws Error (usage) for an empty name or brackets that do not close.
TensorRequest parse_request(const std::string& text);

/// Elements [offset, offset + shape) of a tensor, in every dim.
struct TensorSlice {
  Shape offset, shape;
  std::vector<bool> dropped;  ///< per dim: taken by an index, and so no dim of the result
  Shape result_shape() const;
};
/// `slice` of a tensor of `global_shape`: per dim an index or FIRST:END, negative ones count from
/// the end, `...` stands for as many whole dims as are missing, dims left out at the end are whole.
/// As in NumPy, ranges are clipped to the tensor and may be empty; an index outside throws Error
/// (usage), as do steps other than 1 and too many dims; `name` is for the message.
TensorSlice parse_slice(const std::string& slice, const std::string& name,
                        const Shape& global_shape);

/// "[0:4, 37:40]", an index for a dropped dim: "[3, 37:40]".
std::string to_string(const TensorSlice& slice);

/// Calls visit(offset, shape) for consecutive pieces of the block [offset, offset + shape), in
/// row-major order, each at most `most` (> 0) elements; together they are the block.
void for_each_piece(const Shape& offset, const Shape& shape, std::int64_t most,
                    const std::function<void(const Shape&, const Shape&)>& visit);

}  // namespace longspan::launcher
