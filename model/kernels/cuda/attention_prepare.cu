// What comes before an attention kernel: the mask's tiles, copies in bf16, delta.
#include "model/kernels/cuda/attention_prepare.hpp"

#include <climits>

#include "model/kernels/cuda/attention_mask.cuh"
#include "model/kernels/cuda/mma.cuh"

namespace longspan::model::cuda {
namespace {

using longspan::cuda::launch;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kWarp = 0xffffffffu;

__device__ inline std::int32_t warp_min(std::int32_t x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x = min(x, __shfl_xor_sync(kWarp, x, distance));
  return x;
}
__device__ inline std::int32_t warp_max(std::int32_t x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x = max(x, __shfl_xor_sync(kWarp, x, distance));
  return x;
}

/// The key positions [low, high] that every query sees.
__global__ void find_intervals(const std::int32_t* positions, std::int32_t queries, bool causal,
                               std::int64_t window, std::int32_t* low, std::int32_t* high) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= queries) return;
  const std::int64_t position = positions[i];
  std::int64_t first = 0, last = INT_MAX;
  if (window > 0) {
    first = position >= window ? position - window + 1 : 0;
    if (window <= INT_MAX && position + window - 1 < last) last = position + window - 1;
  }
  if (causal) last = position;
  low[i] = position < 0 ? INT_MAX : static_cast<std::int32_t>(first);
  high[i] = position < 0 ? -1 : static_cast<std::int32_t>(last);
}

/// One warp a tile.
__global__ void summarise_queries(const std::int32_t* low, const std::int32_t* high,
                                  const std::int32_t* documents, std::int32_t queries, int tile,
                                  QueryTile* tiles) {
  const int lane = threadIdx.x;
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x) * tile;
  QueryTile all{INT_MAX, 0, INT_MAX, -1, INT_MAX, INT_MIN};
  for (std::int32_t i = first + lane; i < min(first + tile, queries); i += 32) {
    all.low_min = min(all.low_min, low[i]);
    all.low_max = max(all.low_max, low[i]);
    all.high_min = min(all.high_min, high[i]);
    all.high_max = max(all.high_max, high[i]);
    if (low[i] > high[i]) continue;
    const std::int32_t document = documents ? documents[std::int64_t{blockIdx.y} * queries + i] : 0;
    all.document_min = min(all.document_min, document);
    all.document_max = max(all.document_max, document);
  }
  all = {warp_min(all.low_min),  warp_max(all.low_max),      warp_min(all.high_min),
         warp_max(all.high_max), warp_min(all.document_min), warp_max(all.document_max)};
  if (lane == 0) tiles[std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = all;
}

__global__ void summarise_keys(const std::int32_t* positions, const std::int32_t* documents,
                               std::int32_t keys, int tile, KeyTile* tiles) {
  const int lane = threadIdx.x;
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x) * tile;
  KeyTile all{INT_MAX, -1, INT_MAX, INT_MIN, 0};
  for (std::int32_t j = first + lane; j < first + tile; j += 32) {
    const std::int32_t position = j < keys ? positions[j] : -1;
    if (position < 0) {
      all.padding = 1;
      continue;
    }
    all.position_min = min(all.position_min, position);
    all.position_max = max(all.position_max, position);
    const std::int32_t document = documents ? documents[std::int64_t{blockIdx.y} * keys + j] : 0;
    all.document_min = min(all.document_min, document);
    all.document_max = max(all.document_max, document);
  }
  all = {warp_min(all.position_min), warp_max(all.position_max), warp_min(all.document_min),
         warp_max(all.document_max), warp_max(all.padding)};
  if (lane == 0) tiles[std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = all;
}

/// Eight numbers a thread; blockIdx.y: the sequence.
__global__ void copy_bf16(Tensor<const float> from, std::int64_t tokens, std::int64_t width,
                          const std::int32_t* positions, uint4* to) {
  const std::int64_t piece = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, pieces = width / 8;
  const std::int64_t token = piece / pieces;
  if (token >= tokens) return;
  uint4 packed = make_uint4(0, 0, 0, 0);
  if (positions[token] >= 0) {
    const float4* const at = reinterpret_cast<const float4*>(from.data + blockIdx.y * from.batch +
                                                             token * from.row + piece % pieces * 8);
    const float4 a = at[0], b = at[1];
    packed = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                        pack_bf16(b.z, b.w));
  }
  to[blockIdx.y * tokens * pieces + piece] = packed;
}

/// One warp a row of one head.
__global__ void find_delta(AttentionDeltaArgs args) {
  const int lane = threadIdx.x % 32;
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= args.batch * args.queries * args.heads) return;
  const std::int64_t head = row % args.heads, query = row / args.heads % args.queries,
                     batch = row / args.heads / args.queries;
  const float* const o = args.o + batch * args.o_batch + query * args.o_row + head * args.head_size;
  const float* const dout =
      args.dout + batch * args.dout_batch + query * args.dout_row + head * args.head_size;
  float sum = 0.0f;
  for (std::int64_t d = 4 * lane; d < args.head_size; d += 128) {
    const float4 a = *reinterpret_cast<const float4*>(o + d),
                 b = *reinterpret_cast<const float4*>(dout + d);
    sum += a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w);
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kWarp, sum, distance);
  if (lane == 0) args.delta[(batch * args.heads + head) * args.queries + query] = sum;
}

unsigned blocks(std::int64_t count, std::int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}
int tiles_of(std::int64_t tokens, int tile) {
  return static_cast<int>(blocks(tokens, tile));
}

}  // namespace

MaskMemory::MaskMemory(const AttentionShape& shape, Device& device, Stream& stream)
    : shape_(shape), device_(device), stream_(stream), intervals_(device, 2 * shape.queries) {
  launch(find_intervals, dim3(blocks(shape.queries, kThreads)), dim3(kThreads), 0, stream,
         shape.query_positions, static_cast<std::int32_t>(shape.queries), shape.mask.causal,
         shape.mask.window, intervals_.data(), intervals_.data() + shape.queries);
}

DeviceMask MaskMemory::in_tiles(TileSizes tiles) {
  const auto queries = static_cast<std::int32_t>(shape_.queries),
             keys = static_cast<std::int32_t>(shape_.keys);
  const int query_tiles = tiles_of(queries, tiles.queries), key_tiles = tiles_of(keys, tiles.keys);
  const int masks = shape_.query_documents ? static_cast<int>(shape_.batch) : 1;
  constexpr std::int64_t kQueryInts = sizeof(QueryTile) / 4, kKeyInts = sizeof(KeyTile) / 4;
  Buffer<std::int32_t>& memory =
      tiles_.emplace_back(device_, masks * (query_tiles * kQueryInts + (key_tiles + 1) * kKeyInts));
  auto* const query_memory = reinterpret_cast<QueryTile*>(memory.data());
  auto* const key_memory = reinterpret_cast<KeyTile*>(query_memory + masks * query_tiles);
  const std::int32_t *low = intervals_.data(), *high = low + queries;
  launch(summarise_queries, dim3(query_tiles, masks), dim3(32), 0, stream_, low, high,
         shape_.query_documents, queries, tiles.queries, query_memory);
  if (key_tiles > 0)
    launch(summarise_keys, dim3(key_tiles, masks), dim3(32), 0, stream_, shape_.key_positions,
           shape_.key_documents, keys, tiles.keys, key_memory);
  return {.low = low,
          .high = high,
          .key_positions = shape_.key_positions,
          .query_documents = shape_.query_documents,
          .key_documents = shape_.key_documents,
          .query_tiles = query_memory,
          .key_tiles = key_memory,
          .queries = queries,
          .keys = keys,
          .query_tile_count = query_tiles,
          .key_tile_count = key_tiles};
}

Bf16Copy::Bf16Copy(Tensor<const float> from, std::int64_t batch, std::int64_t tokens,
                   std::int64_t width, const std::int32_t* positions, Device& device,
                   Stream& stream)
    : memory_(device, batch * tokens * width), row_(width), batch_(tokens * width) {
  if (memory_.size() == 0) return;
  launch(copy_bf16, dim3(blocks(tokens * width / 8, kThreads), static_cast<unsigned>(batch)),
         dim3(kThreads), 0, stream, from, tokens, width, positions,
         reinterpret_cast<uint4*>(memory_.data()));
}

void attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  const std::int64_t rows = args.batch * args.queries * args.heads;
  if (rows == 0) return;
  check_alignment("o", args.o, args.o_row, args.o_batch);
  check_alignment("dout", args.dout, args.dout_row, args.dout_batch);
  launch(find_delta, dim3(blocks(rows, kWarps)), dim3(kThreads), 0, stream, args);
}

}  // namespace longspan::model::cuda
