/// Two loops over memory in which no element meets another. An operation is a struct with
///   template <int N> auto load(at) const          reads N elements,
///   template <int N> void finish(at, loaded) const computes and writes them,
/// so that several loads are under way before the first result is written, also in place.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "model/kernels/cuda/device_code.cuh"

namespace longspan::model::cuda {

constexpr int kThreads = 256;
/// With fewer than 32 KiB of loads under way per multiprocessor an H200 does not reach its
/// bandwidth (4.8 TB/s times about 700 ns over 132 multiprocessors is 25 KiB): two packs of 16
/// bytes a thread.
constexpr int kPacksPerThread = 2;

/// at = the index of the first of N elements. Elements [0, head) and those behind the last pack are
/// done one by one.
template <int N, class Operation>
__global__ void flat_kernel(Operation operation, std::int64_t head, std::int64_t packs,
                            std::int64_t count) {
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads * kPacksPerThread) + threadIdx.x;
  if constexpr (N > 1) {
    if (blockIdx.x == 0) {
      const std::int64_t t = threadIdx.x, tail = head + packs * N;
      if (t < head) operation.template finish<1>(t, operation.template load<1>(t));
      if (tail + t < count)
        operation.template finish<1>(tail + t, operation.template load<1>(tail + t));
    }
  }
  decltype(operation.template load<N>(first)) loaded[kPacksPerThread] = {};
#pragma unroll
  for (int k = 0; k < kPacksPerThread; ++k)
    if (first + k * kThreads < packs)
      loaded[k] = operation.template load<N>(head + (first + k * kThreads) * N);
#pragma unroll
  for (int k = 0; k < kPacksPerThread; ++k)
    if (first + k * kThreads < packs)
      operation.template finish<N>(head + (first + k * kThreads) * N, loaded[k]);
}

/// Runs the operation on [0, count); `vector`: from element `head` < 4 on, its arrays may be moved
/// in packs of four.
template <class Operation>
void run_flat(std::int64_t count, bool vector, std::int64_t head, const Operation& operation,
              Stream& stream) {
  if (count <= 0) return;
  const std::int64_t packs = (count - head) / 4;
  if (vector && packs > 0)
    launch(flat_kernel<4, Operation>, blocks_for(packs, kThreads * kPacksPerThread), kThreads, 0,
           stream, operation, head, packs, count);
  else
    launch(flat_kernel<1, Operation>, blocks_for(count, kThreads * kPacksPerThread), kThreads, 0,
           stream, operation, std::int64_t{0}, count, count);
}

/// The same where `pointers` are all its arrays (null ones do not matter), of floats: packs of four
/// if they are equally far from a multiple of 16 bytes.
template <class Operation>
void run_flat(std::int64_t count, const Operation& operation, Stream& stream,
              std::initializer_list<const float*> pointers) {
  std::uintptr_t offset = 0;
  bool equal = true, found = false;
  for (const float* pointer : pointers) {
    if (pointer == nullptr) continue;
    const std::uintptr_t place = reinterpret_cast<std::uintptr_t>(pointer) % 16;
    if (!found) offset = place;
    found = true;
    equal = equal && place == offset;
  }
  run_flat(count, equal, static_cast<std::int64_t>((16 - offset) % 16 / 4), operation, stream);
}

/// As above for [rows, width]: operation.row(row) gives what is the same for the whole row
/// (pointers, positions), and load and finish get it with the column. A row has blockDim.x threads,
/// so there is nothing to divide.
template <int N, class Operation>
__global__ void rows_kernel(Operation operation, std::int64_t rows, std::int64_t width) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const auto place = operation.row(row);
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * N;
  for (std::int64_t col = static_cast<std::int64_t>(threadIdx.x) * N; col < width;
       col += kPacksPerThread * step) {
    decltype(operation.template load<N>(place, col)) loaded[kPacksPerThread] = {};
#pragma unroll
    for (int k = 0; k < kPacksPerThread; ++k)
      if (col + k * step < width) loaded[k] = operation.template load<N>(place, col + k * step);
#pragma unroll
    for (int k = 0; k < kPacksPerThread; ++k)
      if (col + k * step < width) operation.template finish<N>(place, col + k * step, loaded[k]);
  }
}

/// Runs the operation on [rows, width]; `vector`: all its rows begin at multiples of 16 bytes and
/// width is a multiple of 4.
template <class Operation>
void run_rows(std::int64_t rows, std::int64_t width, bool vector, const Operation& operation,
              Stream& stream) {
  if (rows <= 0 || width <= 0) return;
  const std::int64_t packs = vector ? width / 4 : width;
  const auto across = static_cast<unsigned>(
      std::min<std::int64_t>(kThreads, power_of_two((packs + 1) / kPacksPerThread)));
  const dim3 block(across, kThreads / across);
  if (vector)
    launch(rows_kernel<4, Operation>, blocks_for(rows, block.y), block, 0, stream, operation, rows,
           width);
  else
    launch(rows_kernel<1, Operation>, blocks_for(rows, block.y), block, 0, stream, operation, rows,
           width);
}

}  // namespace longspan::model::cuda
