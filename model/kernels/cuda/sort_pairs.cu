#include "model/kernels/cuda/sort_pairs.hpp"

#include "parallel/cuda/launch.hpp"

#if defined(LONGSPAN_CUDA_EMULATED)
#include <algorithm>
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#endif

namespace longspan::model::cuda {

#if defined(LONGSPAN_CUDA_EMULATED)

void sort_pairs(std::int64_t count, const std::int32_t* keys, std::int32_t* sorted_keys,
                const std::int32_t* values, std::int32_t* sorted_values, Device&, Stream&) {
  const ::cuda_emulator::DeviceAccess access;
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return keys[a] < keys[b]; });
  for (std::int64_t i = 0; i < count; ++i) {
    sorted_keys[i] = keys[order[static_cast<std::size_t>(i)]];
    sorted_values[i] = values[order[static_cast<std::size_t>(i)]];
  }
}

#else

void sort_pairs(std::int64_t count, const std::int32_t* keys, std::int32_t* sorted_keys,
                const std::int32_t* values, std::int32_t* sorted_values, Device& device,
                Stream& stream) {
  const int items = static_cast<int>(count);
  const cudaStream_t native = longspan::cuda::native(stream);
  std::size_t bytes = 0;
  LONGSPAN_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_keys, values,
                                                sorted_values, items, 0, 32, native));
  const Buffer<std::byte> scratch(device, static_cast<std::int64_t>(bytes));
  LONGSPAN_CUDA(cub::DeviceRadixSort::SortPairs(scratch.data(), bytes, keys, sorted_keys, values,
                                                sorted_values, items, 0, 32, native));
}

#endif

}  // namespace longspan::model::cuda
