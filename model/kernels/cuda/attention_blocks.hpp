/// Attention by a library that knows only dense blocks: rectangles, in which every query sees every
/// key, and causal squares, with or without a window. Where the positions are known on the host to
/// be runs that count up (PositionRuns), a call is a few such blocks, whose results are merged as
/// those of a ring are. Read next: cudnn_attention.hpp, which brings the library.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/kernels/attention.hpp"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// [batch, tokens, heads, head_size]; strides in elements, head_size contiguous.
template <class T>
struct HeadTensor {
  T* data = nullptr;
  std::int64_t batch = 0, row = 0, head = 0;
};

struct DenseShape {
  std::int64_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, head_size = 0;
  bool causal = false;      ///< query i sees keys 0 to i; as many queries as keys
  std::int32_t window = 0;  ///< of these the last so many alone; 0: all. Only with `causal`
  float scale = 0.0f;
};

/// o = softmax(scale q k^T) v in fp32, lse [batch, heads, queries] packed; both overwritten.
struct DenseForward {
  DenseShape shape;
  HeadTensor<const std::uint16_t> q, k, v;  ///< bf16; k and v have the same strides
  HeadTensor<float> o;
  float* lse = nullptr;
};

/// Gradients are overwritten, packed [batch, tokens, heads, head_size], in fp32. heads == kv_heads.
struct DenseBackward {
  DenseShape shape;
  HeadTensor<const std::uint16_t> q, k, v, dout;
  /// Anything whose product with dout, summed over head_size, is delta. Strides as dout.
  HeadTensor<const std::uint16_t> o;
  const float* lse = nullptr;  ///< [batch, heads, queries] packed
  float *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

class DenseAttention {
 public:
  virtual ~DenseAttention() = default;
  /// Whether a call of this shape and these strides (pointers do not matter) is served; asked
  /// before anything is computed.
  virtual bool serves(const DenseForward& call) = 0;
  virtual bool serves(const DenseBackward& call) = 0;
  virtual void forward(const DenseForward& call, Stream& stream) = 0;
  virtual void backward(const DenseBackward& call, Stream& stream) = 0;
  virtual std::string description() const = 0;
};

/// One run of queries against one run of keys: tokens, not positions.
struct DenseBlock {
  std::int64_t first_query = 0, queries = 0, first_key = 0, keys = 0;
  bool causal = false;
  std::int32_t window = 0;  ///< as in DenseShape
};

/// The visible blocks of a mask, by runs of queries and then of keys; nullopt where it is not made
/// of such blocks (the edge of a window crosses a block that is no causal square), or where nothing
/// is known of the positions.
std::optional<std::vector<DenseBlock>> dense_blocks(const AttentionShape& shape);

/// False, with nothing done, where `dense` or the shape does not allow it. workspace_bytes: as
/// AttentionOptions.
bool forward_in_blocks(DenseAttention& dense, const AttentionForwardArgs& args,
                       std::int64_t workspace_bytes, Device& device, Stream& stream);
bool backward_in_blocks(DenseAttention& dense, const AttentionBackwardArgs& args,
                        std::int64_t workspace_bytes, Device& device, Stream& stream);

}  // namespace longspan::model::cuda
