/// CUDA's attention behind host pointers: arrays go to the device before a call and come back after
/// it.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/attention_blocks.hpp"
#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/cuda/device.hpp"
#include "support/attention_problem.hpp"
#include "support/kernel_backend.hpp"

namespace longspan::testing_support {

/// Of the emulator that this program is linked with.
inline model::Backend emulated_backend() {
  static cuda::CudaDevice device(0);
  static model::CudaKernels kernels(device);
  return {device, kernels, device.stream()};
}

class CudaAttentionRunner final : public AttentionRunner {
 public:
  /// What the backend's Kernels do.
  explicit CudaAttentionRunner(const model::Backend& backend) : backend_(backend) {}
  /// The emulator's backend only: with options, or another's dense blocks, of one's own.
  CudaAttentionRunner(const model::Backend& backend, model::cuda::AttentionOptions options)
      : backend_(backend),
        own_(std::make_unique<model::cuda::Attention>(backend.device, options)) {}
  CudaAttentionRunner(const model::Backend& backend,
                      std::unique_ptr<model::cuda::DenseAttention> dense,
                      model::cuda::AttentionOptions options = {})
      : backend_(backend),
        own_(std::make_unique<model::cuda::Attention>(backend.device, std::move(dense), options)) {}

  void forward(const model::AttentionForwardArgs& args) override {
    HostCall call(backend_, 0);
    model::AttentionForwardArgs a = args;
    place(call, a.shape);
    const model::AttentionShape& s = args.shape;
    const std::int64_t width = s.heads * s.head_size, kv_width = s.kv_heads * s.head_size,
                       statistics = s.batch * s.heads * s.queries;
    a.q = call.in(args.q, extent(s.batch, s.queries, args.q_batch, args.q_row, width));
    a.k = call.in(args.k, extent(s.batch, s.keys, args.kv_batch, args.kv_row, kv_width));
    a.v = call.in(args.v, extent(s.batch, s.keys, args.kv_batch, args.kv_row, kv_width));
    a.o = call.inout(args.o, extent(s.batch, s.queries, args.o_batch, args.o_row, width));
    a.lse = call.inout(args.lse, statistics);
    a.sum = call.inout(args.sum, statistics);
    own_ ? own_->forward(a, backend_.stream)
         : backend_.kernels.attention_forward(a, backend_.stream);
    call.finish();
  }

  void delta(const model::AttentionDeltaArgs& args) override {
    HostCall call(backend_, 0);
    model::AttentionDeltaArgs a = args;
    const std::int64_t width = args.heads * args.head_size;
    a.o = call.in(args.o, extent(args.batch, args.queries, args.o_batch, args.o_row, width));
    a.dout =
        call.in(args.dout, extent(args.batch, args.queries, args.dout_batch, args.dout_row, width));
    a.delta = call.inout(args.delta, args.batch * args.heads * args.queries);
    own_ ? own_->delta(a, backend_.stream) : backend_.kernels.attention_delta(a, backend_.stream);
    call.finish();
  }

  void backward(const model::AttentionBackwardArgs& args) override {
    HostCall call(backend_, 0);
    model::AttentionBackwardArgs a = args;
    place(call, a.shape);
    const model::AttentionShape& s = args.shape;
    const std::int64_t statistics = s.batch * s.heads * s.queries;
    const auto queries = [&](std::int64_t row, std::int64_t batch) {
      return extent(s.batch, s.queries, batch, row, s.heads * s.head_size);
    };
    const auto keys = [&](std::int64_t row, std::int64_t batch) {
      return extent(s.batch, s.keys, batch, row, s.kv_heads * s.head_size);
    };
    a.q = call.in(args.q, queries(args.q_row, args.q_batch));
    a.k = call.in(args.k, keys(args.kv_row, args.kv_batch));
    a.v = call.in(args.v, keys(args.kv_row, args.kv_batch));
    a.dout = call.in(args.dout, queries(args.dout_row, args.dout_batch));
    a.lse = call.in(args.lse, statistics);
    a.delta = call.in(args.delta, statistics);
    a.dq = call.inout(args.dq, queries(args.dq_row, args.dq_batch));
    a.dk = call.inout(args.dk, keys(args.dkv_row, args.dkv_batch));
    a.dv = call.inout(args.dv, keys(args.dkv_row, args.dkv_batch));
    own_ ? own_->backward(a, backend_.stream)
         : backend_.kernels.attention_backward(a, backend_.stream);
    call.finish();
  }

 private:
  /// Elements from the first to the last.
  static std::int64_t extent(std::int64_t batch, std::int64_t tokens, std::int64_t batch_stride,
                             std::int64_t row, std::int64_t width) {
    return batch * tokens == 0 ? 0 : (batch - 1) * batch_stride + (tokens - 1) * row + width;
  }
  static void place(HostCall& call, model::AttentionShape& shape) {
    shape.query_positions = call.in(shape.query_positions, shape.queries);
    shape.key_positions = call.in(shape.key_positions, shape.keys);
    shape.query_documents = call.in(shape.query_documents, shape.batch * shape.queries);
    shape.key_documents = call.in(shape.key_documents, shape.batch * shape.keys);
  }

  model::Backend backend_;
  std::unique_ptr<model::cuda::Attention> own_;  // null: the backend's
};

}  // namespace longspan::testing_support
