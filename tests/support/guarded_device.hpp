/// The CPU disguised as a device whose memory the host cannot reach: its memory can be touched only
/// inside Device::copy and fill_zero and inside the calls of its Kernels. Whoever else touches it
/// ends the process with one line that names the test. What runs on it without such a line, and
/// gives the CPU's bits, obeys the rules that a GPU has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "launcher/compute.hpp"
#include "model/kernels/observed.hpp"
#include "parallel/device.hpp"
#include "parallel/process_group.hpp"

namespace longspan::testing_support {

/// Its memory is full of NaN when it is handed out, and bytes_in_use() counts as the CPU does.
class GuardedDevice final : public Device {
 public:
  /// One per process at a time. `capacity` bytes of addresses; memory is taken as it is used.
  explicit GuardedDevice(std::size_t capacity = std::size_t{256} << 20);
  ~GuardedDevice() override;
  GuardedDevice(const GuardedDevice&) = delete;
  GuardedDevice& operator=(const GuardedDevice&) = delete;

  std::string name() const override { return "guarded"; }
  void* allocate(std::size_t bytes) override;
  void release(void* memory, std::size_t bytes) noexcept override;
  void copy(void* to, const void* from, std::size_t bytes, Stream& stream) override;
  void fill_zero(void* to, std::size_t bytes, Stream& stream) override;
  Stream& stream() override { return cpu_device().stream(); }
  std::int64_t bytes_in_use() const override;
  std::int64_t peak_bytes() const override;
  void reset_peak() override;

  /// While one of these exists the memory can be touched, by every thread.
  class Access {
   public:
    explicit Access(GuardedDevice& device);
    ~Access();
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

   private:
    GuardedDevice& device_;
  };
  /// Copies and kernel calls so far.
  std::int64_t accesses() const { return accesses_; }
  bool owns(const void* memory) const;

 private:
  void protect(int what);

  mutable std::mutex mutex_;
  char* begin_ = nullptr;
  std::size_t capacity_, used_ = 0;
  std::unordered_map<void*, std::size_t> live_;
  std::multimap<std::size_t, void*> free_;  ///< by size
  std::int64_t bytes_in_use_ = 0, peak_bytes_ = 0, accesses_ = 0;
  int open_ = 0;
};

/// The CPU's operations on a GuardedDevice. One called with memory of the host fails, too.
class GuardedKernels final : public model::ObservedKernels {
 public:
  explicit GuardedKernels(GuardedDevice& device)
      : ObservedKernels({device, model::cpu_kernels(), device.stream()}), device_(device) {}

  void gemm(const model::GemmArgs& a, Stream& stream) override {
    require({a.a, a.b, a.a_bf16, a.b_bf16, a.c, a.bias});
    ObservedKernels::gemm(a, stream);
  }
  void gemm_gelu_forward(const model::GemmGeluArgs& a, Stream& stream) override {
    const model::GemmArgs& p = a.product;
    require({p.a, p.b, p.a_bf16, p.b_bf16, p.c, p.bias, a.y, a.hidden_bf16, a.y_bf16});
    ObservedKernels::gemm_gelu_forward(a, stream);
  }
  void gemm_gelu_backward(const model::GemmGeluBackwardArgs& a, Stream& stream) override {
    const model::GemmArgs& p = a.product;
    require({p.a, p.b, p.a_bf16, p.b_bf16, p.c, p.bias, a.hidden, a.dbias});
    ObservedKernels::gemm_gelu_backward(a, stream);
  }
  void norm_forward(const model::NormForwardArgs& a, Stream& stream) override {
    require({a.x, a.weight, a.bias, a.y, a.mean, a.rstd});
    ObservedKernels::norm_forward(a, stream);
  }
  void residual_norm_forward(const model::ResidualNormArgs& a, Stream& stream) override {
    require({a.residual.x, a.residual.r, a.residual.y, a.residual.dropout.sequences,
             a.residual.dropout.positions, a.norm.x, a.norm.weight, a.norm.bias, a.norm.y,
             a.norm.mean, a.norm.rstd});
    ObservedKernels::residual_norm_forward(a, stream);
  }
  void norm_backward(const model::NormBackwardArgs& a, Stream& stream) override {
    require({a.dy, a.x, a.weight, a.mean, a.rstd, a.dx, a.dweight, a.dbias});
    ObservedKernels::norm_backward(a, stream);
  }
  void residual_forward(const model::ResidualForwardArgs& a, Stream& stream) override {
    require({a.x, a.r, a.y, a.dropout.sequences, a.dropout.positions});
    ObservedKernels::residual_forward(a, stream);
  }
  void residual_backward(const model::ResidualBackwardArgs& a, Stream& stream) override {
    require({a.dy, a.dr, a.dropout.sequences, a.dropout.positions});
    ObservedKernels::residual_backward(a, stream);
  }
  void rotary(const model::RotaryArgs& a, Stream& stream) override {
    require({a.x, a.positions, a.cos_sin});
    ObservedKernels::rotary(a, stream);
  }
  void embedding_forward(const model::EmbeddingForwardArgs& a, Stream& stream) override {
    require({a.ids, a.table, a.position_table, a.positions, a.y});
    ObservedKernels::embedding_forward(a, stream);
  }
  void embedding_backward(const model::EmbeddingBackwardArgs& a, Stream& stream) override {
    require({a.ids, a.dy, a.dtable, a.dposition_table, a.positions});
    ObservedKernels::embedding_backward(a, stream);
  }
  void attention_forward(const model::AttentionForwardArgs& a, Stream& stream) override {
    require({a.shape.query_positions, a.shape.key_positions, a.shape.query_documents,
             a.shape.key_documents, a.q, a.k, a.v, a.o, a.lse, a.sum});
    require_true_hints(a.shape);
    ObservedKernels::attention_forward(a, stream);
  }
  void attention_backward(const model::AttentionBackwardArgs& a, Stream& stream) override {
    require({a.shape.query_positions, a.shape.key_positions, a.shape.query_documents,
             a.shape.key_documents, a.q, a.k, a.v, a.dout, a.lse, a.delta, a.dq, a.dk, a.dv});
    require_true_hints(a.shape);
    ObservedKernels::attention_backward(a, stream);
  }
  void attention_delta(const model::AttentionDeltaArgs& a, Stream& stream) override {
    require({a.o, a.dout, a.delta});
    ObservedKernels::attention_delta(a, stream);
  }
  void cross_entropy(const model::CrossEntropyArgs& a, Stream& stream) override {
    require({a.logits, a.targets, a.losses, a.statistics});
    ObservedKernels::cross_entropy(a, stream);
  }
  void adamw(const model::AdamwArgs& a, Stream& stream) override {
    require({a.weight, a.gradient, a.exp_avg, a.exp_avg_sq});
    ObservedKernels::adamw(a, stream);
  }

 private:
  /// Fails unless each is null or memory of the device.
  void require(std::initializer_list<const void*> arguments) const;
  /// Fails if the positions are not the runs that they are said to be.
  void require_true_hints(const model::AttentionShape& shape) const;
  void observe(const model::OperationCall& operation, Stream& stream,
               const std::function<void()>& call) override;
  GuardedDevice& device_;
};

/// Groups whose tensors lie on a GuardedDevice: through memory of the host and MPI.
std::unique_ptr<ProcessGroup> make_guarded_group(GuardedDevice& device, const Communicator& comm);

/// All three, as a run takes them. `device` is the one of the process.
launcher::Compute guarded_compute();
GuardedDevice& guarded_device();

}  // namespace longspan::testing_support
