#include "model/kernels/cuda/elementwise.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"
#include "model/kernels/cuda/sort_pairs.hpp"

namespace longspan::model::cuda {
namespace {

template <int N>
struct Sum {
  Pack<N> token, position;
};

struct EmbeddingForward {
  EmbeddingForwardArgs a;
  struct Row {
    const float *token, *position;
    float* y;
  };
  __device__ Row row(std::int64_t row) const {
    const std::int64_t id = a.ids[row];
    return {id < 0 ? nullptr : a.table + id * a.width,
            a.position_table == nullptr
                ? nullptr
                : a.position_table + a.positions[row_in_sequence(row, a.tokens)] * a.width,
            a.y + row * a.width};
  }
  template <int N>
  __device__ Sum<N> load(const Row& row, std::int64_t col) const {
    return {row.token != nullptr ? cuda::load<N>(row.token + col) : zero_pack<N>(),
            row.position != nullptr ? cuda::load<N>(row.position + col) : zero_pack<N>()};
  }
  template <int N>
  __device__ void finish(const Row& row, std::int64_t col, Sum<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (row.position != nullptr) in.token.v[j] += in.position.v[j];
    store<N>(in.token, row.y + col);
  }
};

/// keys[row] = ids[row], or ids[row % tokens] where tokens > 0; numbers[row] = row.
__global__ void number_rows_kernel(std::int64_t rows, const std::int32_t* ids, std::int64_t tokens,
                                   std::int32_t* keys, std::int32_t* numbers) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  keys[row] = ids[tokens > 0 ? row_in_sequence(row, tokens) : row];
  numbers[row] = static_cast<std::int32_t>(row);
}

/// Rows sorted by key, those of one key in ascending order. A warp whose place begins a run of
/// equal keys adds its rows to the table one after the other, for 32 * N columns; all other warps
/// leave. Loads run kAhead rows ahead of the additions: a token may fill a quarter of the rows.
template <int N>
__global__ void add_runs_kernel(std::int64_t rows, std::int64_t width, const std::int32_t* keys,
                                const std::int32_t* numbers, const float* dy, float* table) {
  constexpr int kAhead = 16;
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (place >= rows) return;
  const std::int32_t key = keys[place];
  if (key < 0 || (place > 0 && keys[place - 1] == key)) return;
  const int lane = static_cast<int>(threadIdx.x);
  const std::int64_t col = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * N;
  const bool inside = col < width;
  float* sum_at = table + key * width + col;
  Pack<N> sum = inside ? load<N>(sum_at) : zero_pack<N>();
  for (std::int64_t begin = place;; begin += 32) {
    const bool mine = begin + lane < rows && keys[begin + lane] == key;
    const std::int32_t number = mine ? numbers[begin + lane] : 0;
    // Equal keys are neighbours, so these are the first `count` lanes.
    const int count = __popc(__ballot_sync(kAllLanes, mine));
    for (int first = 0; first < count; first += kAhead) {
      Pack<N> next[kAhead] = {};
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        const std::int64_t row = __shfl_sync(kAllLanes, number, (first + r) % 32);
        if (first + r < count && inside) next[r] = load<N>(dy + row * width + col);
      }
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        if (first + r >= count || !inside) continue;
#pragma unroll
        for (int j = 0; j < N; ++j) sum.v[j] += next[r].v[j];
      }
    }
    if (count < 32) break;
  }
  if (inside) store<N>(sum, sum_at);
}

/// table[id of row] += dy[row], ids as in number_rows_kernel.
void add_by_id(std::int64_t rows, std::int64_t width, const std::int32_t* ids, std::int64_t tokens,
               const float* dy, float* table, Device& device, Stream& stream) {
  const Buffer<std::int32_t> keys(device, rows), numbers(device, rows), sorted_keys(device, rows),
      sorted_numbers(device, rows);
  launch(number_rows_kernel, blocks_for(rows, kThreads), kThreads, 0, stream, rows, ids, tokens,
         keys.data(), numbers.data());
  sort_pairs(rows, keys.data(), sorted_keys.data(), numbers.data(), sorted_numbers.data(), device,
             stream);
  const bool vector = width % 4 == 0 && aligned16(dy, table);
  const dim3 block(32, 8);
  const dim3 grid(blocks_for(rows, block.y), blocks_for(width, vector ? 128 : 32));
  if (vector)
    launch(add_runs_kernel<4>, grid, block, 0, stream, rows, width, sorted_keys.data(),
           sorted_numbers.data(), dy, table);
  else
    launch(add_runs_kernel<1>, grid, block, 0, stream, rows, width, sorted_keys.data(),
           sorted_numbers.data(), dy, table);
}

}  // namespace

void embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) {
  const bool vector = args.width % 4 == 0 && aligned16(args.table, args.position_table, args.y);
  run_rows(args.rows, args.width, vector, EmbeddingForward{args}, stream);
}

void embedding_backward(const EmbeddingBackwardArgs& args, Device& device, Stream& stream) {
  if (args.rows <= 0 || args.width <= 0) return;
  check_sortable(args.rows);
  add_by_id(args.rows, args.width, args.ids, 0, args.dy, args.dtable, device, stream);
  if (args.dposition_table != nullptr)
    add_by_id(args.rows, args.width, args.positions, args.tokens, args.dy, args.dposition_table,
              device, stream);
}

}  // namespace longspan::model::cuda
