/// A stable sort on the device: CUB's radix sort (part of the CUDA toolkit); in the emulator, whose
/// kernels are the host's code, the standard library's.
#pragma once

#include <cstdint>

#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// sorted_keys = keys in ascending order, sorted_values = values in the order of their keys; equal
/// keys keep their order. All are [count] on `device`; count < 2^31. Throws Error.
void sort_pairs(std::int64_t count, const std::int32_t* keys, std::int32_t* sorted_keys,
                const std::int32_t* values, std::int32_t* sorted_values, Device& device,
                Stream& stream);

}  // namespace longspan::model::cuda
