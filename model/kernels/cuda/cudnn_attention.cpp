#include "model/kernels/cuda/cudnn_attention.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <list>
#include <optional>
#include <utility>

#include "model/kernels/cuda/cudnn_graph.hpp"
#include "parallel/cuda/stream.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"

namespace longspan::model::cuda {

#if defined(LONGSPAN_CUDNN)
namespace {

template <class T>
CudnnStrides strides_of(const HeadTensor<T>& x) {
  return {x.batch, x.head, x.row};
}

CudnnBlock block_of(const DenseShape& shape) {
  CudnnBlock block;
  block.batch = shape.batch, block.heads = shape.heads, block.kv_heads = shape.kv_heads;
  block.queries = shape.queries, block.keys = shape.keys, block.head_size = shape.head_size;
  block.causal = shape.causal, block.window = shape.window;
  return block;
}
CudnnBlock block_of(const DenseForward& call) {
  CudnnBlock block = block_of(call.shape);
  block.q = strides_of(call.q), block.kv = strides_of(call.k), block.o = strides_of(call.o);
  return block;
}
CudnnBlock block_of(const DenseBackward& call) {
  CudnnBlock block = block_of(call.shape);
  block.q = strides_of(call.q), block.kv = strides_of(call.k), block.dout = strides_of(call.dout);
  return block;
}

class CudnnAttention final : public DenseAttention {
 public:
  CudnnAttention(Device& device, CudnnLibrary library)
      : device_(device), library_(std::move(library)) {
    library_.check(library_.create(&target_.handle), "cudnnCreate");
  }
  ~CudnnAttention() override {
    forward_.clear();
    backward_.clear();
    library_.destroy(target_.handle);
  }

  bool serves(const DenseForward& call) override {
    return is_worth_a_plan(call.shape) &&
           plan(forward_, block_of(call), cudnn_forward_plan) != nullptr;
  }
  bool serves(const DenseBackward& call) override {
    return is_worth_a_plan(call.shape) &&
           plan(backward_, block_of(call), cudnn_backward_plan) != nullptr;
  }

  void forward(const DenseForward& call, Stream& stream) override {
    const CudnnPlan* const made = plan(forward_, block_of(call), cudnn_forward_plan);
    float scale = call.shape.scale, minus_infinity = -1.0f / 0.0f;
    std::int32_t window = call.shape.window;
    std::vector<Tensor> tensors = {{kCudnnQ, call.q.data},  {kCudnnK, call.k.data},
                                   {kCudnnV, call.v.data},  {kCudnnO, call.o.data},
                                   {kCudnnStats, call.lse}, {kCudnnScale, &scale}};
    if (call.shape.causal) tensors.push_back({kCudnnMinusInfinity, &minus_infinity});
    if (window > 0) tensors.push_back({kCudnnWindow, &window});
    execute(*made, tensors, stream);
  }

  void backward(const DenseBackward& call, Stream& stream) override {
    const CudnnPlan* const made = plan(backward_, block_of(call), cudnn_backward_plan);
    const DenseShape& shape = call.shape;
    const std::int64_t rows = shape.batch * shape.heads * shape.queries;
    const Buffer<float> delta(device_, rows), dq_sum(device_, rows * shape.head_size);
    float scale = shape.scale, one = 1.0f, minus_infinity = -1.0f / 0.0f;
    std::int32_t window = shape.window;
    std::vector<Tensor> tensors = {{kCudnnQ, call.q.data},
                                   {kCudnnK, call.k.data},
                                   {kCudnnV, call.v.data},
                                   {kCudnnDout, call.dout.data},
                                   {kCudnnO, call.o.data},
                                   {kCudnnStats, call.lse},
                                   {kCudnnDelta, delta.data()},
                                   {kCudnnDqSum, dq_sum.data()},
                                   {kCudnnDq, call.dq},
                                   {kCudnnDk, call.dk},
                                   {kCudnnDv, call.dv},
                                   {kCudnnScale, &scale},
                                   {kCudnnOne, &one}};
    if (shape.causal) tensors.push_back({kCudnnMinusInfinity, &minus_infinity});
    if (window > 0) tensors.push_back({kCudnnWindow, &window});
    execute(*made, tensors, stream);
  }

  std::string description() const override { return "cuDNN " + library_.version_text(); }

 private:
  /// A plan takes half a second to make, for one number of tokens: not while text is generated.
  static bool is_worth_a_plan(const DenseShape& shape) {
    return std::min(shape.queries, shape.keys) >= 256;
  }

  struct Tensor {
    std::int64_t id;
    const void* data;
  };
  struct Known {
    CudnnBlock block;
    std::optional<CudnnPlan> plan;  ///< none: refused
  };

  template <class Make>
  const CudnnPlan* plan(std::list<Known>& known, const CudnnBlock& block, Make make) {
    for (const Known& one : known)
      if (one.block == block) return one.plan ? &*one.plan : nullptr;
    Known& added = known.emplace_back(Known{block, std::nullopt});
    try {
      added.plan = make(library_, target_, block);
    } catch (const Error& error) {
      log::warn("attention of {} x {} tokens{}, {} heads of {}: own kernel, because {}",
                block.queries, block.keys,
                block.window > 0 ? fmt::format(" in a window of {}", block.window) : "",
                block.heads, block.head_size, error.what());
    }
    return added.plan ? &*added.plan : nullptr;
  }

  void execute(const CudnnPlan& made, const std::vector<Tensor>& tensors, Stream& stream) {
    const Buffer<float> workspace(device_, made.workspace_bytes / 4 + 4);
    std::vector<std::int64_t> ids;
    std::vector<void*> data;
    for (const Tensor& tensor : tensors) {
      ids.push_back(tensor.id);
      data.push_back(const_cast<void*>(tensor.data));
    }
    void* const scratch = workspace.data();
    CudnnDescriptor pack(library_, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    const auto count = static_cast<std::int64_t>(ids.size());
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data());
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, data.data());
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &scratch);
    pack.finalize();
    library_.check(library_.set_stream(target_.handle, longspan::cuda::native(stream)),
                   "cudnnSetStream");
    library_.check(library_.execute(target_.handle, made.plan.get(), pack.get()),
                   "running attention");
  }

  Device& device_;
  CudnnLibrary library_;
  CudnnTarget target_;
  std::list<Known> forward_, backward_;
};

}  // namespace

std::unique_ptr<DenseAttention> open_cudnn_attention(Device& device, std::string& reason) {
  try {
    return std::make_unique<CudnnAttention>(device, CudnnLibrary());
  } catch (const Error& error) {
    reason = error.what();
    return nullptr;
  }
}

#else

std::unique_ptr<DenseAttention> open_cudnn_attention(Device&, std::string& reason) {
  reason = "built without cuDNN's headers";
  return nullptr;
}

#endif

}  // namespace longspan::model::cuda
