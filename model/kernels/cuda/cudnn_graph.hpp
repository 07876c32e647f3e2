/// cuDNN's attention through its plain C graph API: the library opened at run time, the operation
/// graphs of one dense block of attention, and the plans its heuristics make of them. Nothing here
/// needs a GPU until a plan is executed. The order of operations is the one cuDNN's own front end
/// builds (NVIDIA/cudnn-frontend, MIT), which its engines recognise as one kernel. Read next:
/// cudnn_attention.hpp.
#pragma once

#if defined(LONGSPAN_CUDNN)

#include <cudnn.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace longspan::model::cuda {

/// libcudnn.so.9, opened at run time. Throws Error, in one line, if it is missing, too old or lacks
/// a function.
class CudnnLibrary {
 public:
  /// `name`: another file, for tests.
  explicit CudnnLibrary(const char* name = nullptr);
  std::int64_t version() const { return version_; }  ///< 91900
  std::string version_text() const;                  ///< "9.19.0"
  /// Throws Error with cuDNN's own words unless `status` is success. `what` names the call.
  void check(cudnnStatus_t status, const char* what) const;

  decltype(&cudnnBackendCreateDescriptor) create_descriptor;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor;
  decltype(&cudnnBackendSetAttribute) set_attribute;
  decltype(&cudnnBackendGetAttribute) get_attribute;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendExecute) execute;
  decltype(&cudnnCreate) create;
  decltype(&cudnnDestroy) destroy;
  decltype(&cudnnSetStream) set_stream;
  decltype(&cudnnGetLastErrorString) last_error;
  decltype(&cudnnGetErrorString) error_text;

 private:
  std::int64_t version_ = 0;
};

/// Owns one backend descriptor.
class CudnnDescriptor {
 public:
  CudnnDescriptor() = default;
  CudnnDescriptor(const CudnnLibrary& library, cudnnBackendDescriptorType_t type);
  CudnnDescriptor(CudnnDescriptor&& other) noexcept { *this = std::move(other); }
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept;
  ~CudnnDescriptor();
  cudnnBackendDescriptor_t get() const { return raw_; }

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
           const void* values);
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value);
  void set(cudnnBackendAttributeName_t name, std::int64_t value);
  void finalize();
  std::int64_t get_int(cudnnBackendAttributeName_t name) const;

 private:
  const CudnnLibrary* library_ = nullptr;
  cudnnBackendDescriptor_t raw_ = nullptr;
};

/// The GPU a plan is for: of this process, by a handle, or, where there is none, described by
/// cuDNN's JSON.
struct CudnnTarget {
  cudnnHandle_t handle = nullptr;
  CudnnDescriptor properties;  ///< without a handle
};
CudnnTarget cudnn_target(const CudnnLibrary& library, const std::string& json);

/// [batch, heads, tokens, head_size] with the last contiguous; strides in elements.
struct CudnnStrides {
  std::int64_t batch = 0, head = 0, row = 0;
  bool operator==(const CudnnStrides&) const = default;
};

/// One dense block: every query sees every key, or, causal, query i keys 0 to i of as many, or,
/// with a window too, of these the last `window` alone.
struct CudnnBlock {
  std::int64_t batch = 0, heads = 0, kv_heads = 0, queries = 0, keys = 0, head_size = 0;
  bool causal = false;
  std::int32_t window = 0;      ///< 0: none; only with `causal`
  CudnnStrides q, kv, dout, o;  ///< q, kv, dout in bf16; o in fp32. Gradients are packed, fp32
  bool operator==(const CudnnBlock&) const = default;
};

/// What the numbers of a plan's tensors stand for.
enum CudnnTensor : std::int64_t {
  kCudnnQ = 1,
  kCudnnK,
  kCudnnV,
  kCudnnO,
  kCudnnStats,
  kCudnnScale,
  kCudnnOne,
  kCudnnMinusInfinity,
  kCudnnWindow,  ///< int32
  kCudnnDout,
  kCudnnDelta,
  kCudnnDq,
  kCudnnDqSum,
  kCudnnDk,
  kCudnnDv,
  kCudnnKeyRows,
  kCudnnVirtual
};

struct CudnnPlan {
  CudnnDescriptor plan;
  std::int64_t workspace_bytes = 0;
  int operations = 0;
};

/// O and the log-sum-exp of Q, K, V. Throws Error if cuDNN has no engine for it.
CudnnPlan cudnn_forward_plan(const CudnnLibrary& library, const CudnnTarget& target,
                             const CudnnBlock& block);
/// dQ, dK, dV of Q, K, V, dO, O and the log-sum-exp. heads == kv_heads. O, in bf16 with the strides
/// of dO, is asked for its products with dO alone.
CudnnPlan cudnn_backward_plan(const CudnnLibrary& library, const CudnnTarget& target,
                              const CudnnBlock& block);

}  // namespace longspan::model::cuda

#endif
