/// The CUDA attention kernels behind host pointers: arrays go to the device before a call and come
/// back after it. In these tests the device is emulated.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/attention_blocks.hpp"
#include "support/attention_problem.hpp"

namespace longspan::testing_support {

class CudaAttentionRunner final : public AttentionRunner {
 public:
  explicit CudaAttentionRunner(Device& device, model::cuda::AttentionOptions options = {})
      : device_(device), attention_(device, options) {}
  CudaAttentionRunner(Device& device, std::unique_ptr<model::cuda::DenseAttention> dense,
                      model::cuda::AttentionOptions options = {})
      : device_(device), attention_(device, std::move(dense), options) {}

  void forward(const model::AttentionForwardArgs& args) override {
    start();
    model::AttentionForwardArgs on_device = args;
    place(on_device.shape);
    const Extent queries = extent(args.shape.batch, args.shape.queries, args.q_batch, args.q_row,
                                  args.shape.heads * args.shape.head_size);
    const Extent keys = extent(args.shape.batch, args.shape.keys, args.kv_batch, args.kv_row,
                               args.shape.kv_heads * args.shape.head_size);
    const Extent results = extent(args.shape.batch, args.shape.queries, args.o_batch, args.o_row,
                                  args.shape.heads * args.shape.head_size);
    const std::int64_t statistics = args.shape.batch * args.shape.heads * args.shape.queries;
    on_device.q = place(args.q, queries);
    on_device.k = place(args.k, keys);
    on_device.v = place(args.v, keys);
    on_device.o = place_result(args.o, results);
    on_device.lse = place_result(args.lse, statistics);
    on_device.sum = place_result(args.sum, statistics);
    attention_.forward(on_device, device_.stream());
    fetch();
  }

  void delta(const model::AttentionDeltaArgs& args) override {
    start();
    model::AttentionDeltaArgs on_device = args;
    const std::int64_t width = args.heads * args.head_size;
    on_device.o = place(args.o, extent(args.batch, args.queries, args.o_batch, args.o_row, width));
    on_device.dout =
        place(args.dout, extent(args.batch, args.queries, args.dout_batch, args.dout_row, width));
    on_device.delta = place_result(args.delta, args.batch * args.heads * args.queries);
    attention_.delta(on_device, device_.stream());
    fetch();
  }

  void backward(const model::AttentionBackwardArgs& args) override {
    start();
    model::AttentionBackwardArgs on_device = args;
    place(on_device.shape);
    const model::AttentionShape& shape = args.shape;
    const std::int64_t width = shape.heads * shape.head_size,
                       kv_width = shape.kv_heads * shape.head_size,
                       statistics = shape.batch * shape.heads * shape.queries;
    const auto queries = [&](std::int64_t row, std::int64_t batch) {
      return extent(shape.batch, shape.queries, batch, row, width);
    };
    const auto keys = [&](std::int64_t row, std::int64_t batch) {
      return extent(shape.batch, shape.keys, batch, row, kv_width);
    };
    on_device.q = place(args.q, queries(args.q_row, args.q_batch));
    on_device.k = place(args.k, keys(args.kv_row, args.kv_batch));
    on_device.v = place(args.v, keys(args.kv_row, args.kv_batch));
    on_device.dout = place(args.dout, queries(args.dout_row, args.dout_batch));
    on_device.lse = place(args.lse, statistics);
    on_device.delta = place(args.delta, statistics);
    on_device.dq = place_result(args.dq, queries(args.dq_row, args.dq_batch));
    on_device.dk = place_result(args.dk, keys(args.dkv_row, args.dkv_batch));
    on_device.dv = place_result(args.dv, keys(args.dkv_row, args.dkv_batch));
    attention_.backward(on_device, device_.stream());
    fetch();
  }

 private:
  using Extent = std::int64_t;  // elements from the first to the last
  static Extent extent(std::int64_t batch, std::int64_t tokens, std::int64_t batch_stride,
                       std::int64_t row, std::int64_t width) {
    return batch * tokens == 0 ? 0 : (batch - 1) * batch_stride + (tokens - 1) * row + width;
  }

  template <class T>
  T* place(const T* host, Extent count) {
    if (host == nullptr) return nullptr;
    // Memory of the device comes in floats here; integers are as large.
    static_assert(sizeof(T) == sizeof(float));
    Buffer<float>& buffer = buffers_.emplace_back(device_, count + 1);
    if (count > 0) device_.copy(buffer.data(), host, count * sizeof(T), device_.stream());
    return reinterpret_cast<T*>(buffer.data());
  }
  float* place_result(float* host, Extent count) {
    float* const on_device = place(host, count);
    if (host != nullptr && count > 0) results_.push_back({host, on_device, count});
    return on_device;
  }
  void place(model::AttentionShape& shape) {
    shape.query_positions = place(shape.query_positions, shape.queries);
    shape.key_positions = place(shape.key_positions, shape.keys);
    shape.query_documents = place(shape.query_documents, shape.batch * shape.queries);
    shape.key_documents = place(shape.key_documents, shape.batch * shape.keys);
  }
  /// Forgets a call that threw.
  void start() {
    results_.clear();
    buffers_.clear();
  }
  void fetch() {
    for (const Result& result : results_)
      device_.copy(result.host, result.on_device, result.count * sizeof(float), device_.stream());
    start();
  }

  struct Result {
    float *host, *on_device;
    Extent count;
  };
  Device& device_;
  model::cuda::Attention attention_;
  std::list<Buffer<float>> buffers_;
  std::vector<Result> results_;
};

}  // namespace longspan::testing_support
