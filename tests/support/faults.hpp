/// Working groups, kernels and devices whose heirs spoil one thing: the known bugs of sharded
/// training, put in from outside while the program's own code runs.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "model/kernels/kernels.hpp"
#include "parallel/process_group.hpp"

namespace longspan::testing_support {

/// Calls `then` once the transfer has arrived.
class Tampered : public Pending {
 public:
  Tampered(PendingPtr real, std::function<void()> then)
      : real_(std::move(real)), then_(std::move(then)) {}
  void wait() override { real_->wait(), then_(); }

 private:
  PendingPtr real_;
  std::function<void()> then_;
};

/// A group that works.
class FaultyGroup : public ProcessGroup {
 public:
  explicit FaultyGroup(const Communicator& comm) : real_(make_mpi_group(comm)) {}
  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  PendingPtr all_reduce_sum(View<float> data) override { return real_->all_reduce_sum(data); }
  PendingPtr all_gather(View<const float> mine, View<float> all) override {
    return real_->all_gather(mine, all);
  }
  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    return real_->reduce_scatter_sum(parts, mine);
  }
  PendingPtr reduce_scatter_parts(View<float> data) override {
    return real_->reduce_scatter_parts(data);
  }
  PendingPtr all_gather_parts(View<float> data) override { return real_->all_gather_parts(data); }
  PendingPtr send_receive(View<const float> out, int to, View<float> in, int from) override {
    return real_->send_receive(out, to, in, from);
  }
  PendingPtr all_to_all(View<const float> out, const std::vector<std::int64_t>& out_counts,
                        View<float> in, const std::vector<std::int64_t>& in_counts) override {
    return real_->all_to_all(out, out_counts, in, in_counts);
  }
  std::int64_t bytes_sent() const override { return real_->bytes_sent(); }
  double exposed_seconds() const override { return real_->exposed_seconds(); }

 protected:
  std::unique_ptr<ProcessGroup> real_;
};

/// The CPU's kernels.
class FaultyKernels : public model::Kernels {
 public:
  void gemm(const model::GemmArgs& a, Stream& s) override { real_.gemm(a, s); }
  void norm_forward(const model::NormForwardArgs& a, Stream& s) override {
    real_.norm_forward(a, s);
  }
  void norm_backward(const model::NormBackwardArgs& a, Stream& s) override {
    real_.norm_backward(a, s);
  }
  void gelu_forward(const model::GeluForwardArgs& a, Stream& s) override {
    real_.gelu_forward(a, s);
  }
  void gelu_backward(const model::GeluBackwardArgs& a, Stream& s) override {
    real_.gelu_backward(a, s);
  }
  void swiglu_forward(const model::SwigluForwardArgs& a, Stream& s) override {
    real_.swiglu_forward(a, s);
  }
  void swiglu_backward(const model::SwigluBackwardArgs& a, Stream& s) override {
    real_.swiglu_backward(a, s);
  }
  void residual_forward(const model::ResidualForwardArgs& a, Stream& s) override {
    real_.residual_forward(a, s);
  }
  void residual_backward(const model::ResidualBackwardArgs& a, Stream& s) override {
    real_.residual_backward(a, s);
  }
  void rotary(const model::RotaryArgs& a, Stream& s) override { real_.rotary(a, s); }
  void embedding_forward(const model::EmbeddingForwardArgs& a, Stream& s) override {
    real_.embedding_forward(a, s);
  }
  void embedding_backward(const model::EmbeddingBackwardArgs& a, Stream& s) override {
    real_.embedding_backward(a, s);
  }
  void attention_forward(const model::AttentionForwardArgs& a, Stream& s) override {
    real_.attention_forward(a, s);
  }
  void attention_delta(const model::AttentionDeltaArgs& a, Stream& s) override {
    real_.attention_delta(a, s);
  }
  void attention_backward(const model::AttentionBackwardArgs& a, Stream& s) override {
    real_.attention_backward(a, s);
  }
  void cross_entropy(const model::CrossEntropyArgs& a, Stream& s) override {
    real_.cross_entropy(a, s);
  }
  void adamw(const model::AdamwArgs& a, Stream& s) override { real_.adamw(a, s); }
  void add(std::int64_t n, const float* x, float* y, Stream& s) override { real_.add(n, x, y, s); }
  void add_column_sums(std::int64_t r, std::int64_t c, const float* x, float* y,
                       Stream& s) override {
    real_.add_column_sums(r, c, x, y, s);
  }
  double sum_of_squares(std::int64_t n, const float* x, Stream& s) override {
    return real_.sum_of_squares(n, x, s);
  }
  void round_to_bf16(std::int64_t n, float* x, Stream& s) override { real_.round_to_bf16(n, x, s); }
  void to_bf16(std::int64_t r, std::int64_t c, const float* x, std::int64_t x_row, std::uint16_t* y,
               Stream& s) override {
    real_.to_bf16(r, c, x, x_row, y, s);
  }
  void from_bf16(std::int64_t n, const std::uint16_t* x, float* y, Stream& s) override {
    real_.from_bf16(n, x, y, s);
  }

 protected:
  model::Kernels& real_ = model::cpu_kernels();
};

/// The CPU, but memory is full of NaN when it is handed out: who reads what nobody has written
/// shows it.
class PoisonedDevice : public Device {
 public:
  std::string name() const override { return real_.name(); }
  bool host_accessible() const override { return true; }
  void* allocate(std::size_t bytes) override {
    void* memory = real_.allocate(bytes);
    if (bytes > 0) std::memset(memory, 0xff, bytes);
    return memory;
  }
  void release(void* memory, std::size_t bytes) noexcept override { real_.release(memory, bytes); }
  void copy(void* to, const void* from, std::size_t bytes, Stream& stream) override {
    real_.copy(to, from, bytes, stream);
  }
  void fill_zero(void* to, std::size_t bytes, Stream& stream) override {
    real_.fill_zero(to, bytes, stream);
  }
  Stream& stream() override { return real_.stream(); }
  std::int64_t bytes_in_use() const override { return real_.bytes_in_use(); }
  std::int64_t peak_bytes() const override { return real_.peak_bytes(); }
  void reset_peak() override { real_.reset_peak(); }

 private:
  Device& real_ = cpu_device();
};

inline model::Backend with_kernels(model::Kernels& kernels) {
  const model::Backend cpu = model::cpu_backend();
  return {cpu.device, kernels, cpu.stream};
}

}  // namespace longspan::testing_support
