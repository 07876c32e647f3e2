/// A backend's attention behind host pointers: arrays go to the device before a call and come back
/// after it.
#pragma once

#include <cstdint>

#include "support/attention_problem.hpp"
#include "support/kernel_backend.hpp"

namespace longspan::testing_support {

class DeviceAttentionRunner : public AttentionRunner {
 public:
  explicit DeviceAttentionRunner(const model::Backend& backend) : backend_(backend) {}

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
    run(a);
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
    run(a);
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
    run(a);
    call.finish();
  }

 protected:
  /// On the device's memory.
  virtual void run(const model::AttentionForwardArgs& args) {
    backend_.kernels.attention_forward(args, backend_.stream);
  }
  virtual void run(const model::AttentionDeltaArgs& args) {
    backend_.kernels.attention_delta(args, backend_.stream);
  }
  virtual void run(const model::AttentionBackwardArgs& args) {
    backend_.kernels.attention_backward(args, backend_.stream);
  }
  model::Backend backend_;

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
};

}  // namespace longspan::testing_support
