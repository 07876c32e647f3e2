#include "model/kernels/cuda/cudnn_graph.hpp"

#if defined(LONGSPAN_CUDNN)

#include <dlfcn.h>

#include <array>
#include <list>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::model::cuda {
namespace {

using Dims = std::array<std::int64_t, 4>;
constexpr cudnnDataType_t kFloat = CUDNN_DATA_FLOAT, kBf16 = CUDNN_DATA_BFLOAT16,
                          kInt = CUDNN_DATA_INT32, kBool = CUDNN_DATA_BOOLEAN;

// The attributes that take a handle are called deprecated, and are the way where there is a device.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

/// Operations in the order they are added, and the tensors between them.
class Graph {
 public:
  using Tensor = const CudnnDescriptor*;
  explicit Graph(const CudnnLibrary& library) : library_(library) {}

  Tensor tensor(std::int64_t id, cudnnDataType_t type, const Dims& dims, const Dims& strides,
                bool is_virtual = false, bool by_value = false) {
    CudnnDescriptor& made = made_.emplace_back(library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    made.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
    made.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    made.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.data());
    made.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
    made.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, std::int64_t{16});
    made.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    made.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    made.finalize();
    return &made;
  }
  Tensor scalar(std::int64_t id) {
    return tensor(id, kFloat, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
  }
  /// Between two operations: never in memory.
  Tensor between(const Dims& dims, cudnnDataType_t type = kFloat, bool transposed = false) {
    const std::int64_t matrix = dims[2] * dims[3];
    return tensor(next_virtual_++, type, dims,
                  {dims[1] * matrix, matrix, transposed ? 1 : dims[3], transposed ? dims[2] : 1},
                  true);
  }

  Tensor matmul(Tensor a, Tensor b, Tensor c) {
    CudnnDescriptor& kind = made_.emplace_back(library_, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &kFloat);
    kind.finalize();
    CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, *a);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, *b);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, *c);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
    return add(std::move(operation), c);
  }
  /// y = mode(x), mode(x, b), or t ? x : b.
  Tensor pointwise(cudnnPointwiseMode_t mode, Tensor x, Tensor b, Tensor y, Tensor t = nullptr,
                   cudnnDataType_t precision = kFloat, std::int64_t axis = -1) {
    CudnnDescriptor& kind = made_.emplace_back(library_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    if (axis >= 0) kind.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
    kind.finalize();
    CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, *x);
    if (b != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
    if (t != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *t);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, *y);
    return add(std::move(operation), y);
  }
  Tensor reduce(cudnnReduceTensorOp_t how, Tensor x, Tensor y) {
    CudnnDescriptor& kind = made_.emplace_back(library_, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how);
    kind.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &kFloat);
    kind.finalize();
    CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, *x);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, *y);
    return add(std::move(operation), y);
  }
  Tensor reshape(Tensor x, Tensor y) {
    CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, *x);
    operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, *y);
    return add(std::move(operation), y);
  }
  /// What a causal block hides, and what lies before its window, becomes -inf: column <= row, and
  /// column + window > row, each from indices of its own, as cuDNN's engines want to read it.
  Tensor masked(Tensor scores, const CudnnBlock& block, const Dims& dims) {
    if (!block.causal) return scores;
    const Tensor minus_infinity = scalar(kCudnnMinusInfinity);
    const auto index = [&](std::int64_t axis) {
      return pointwise(CUDNN_POINTWISE_GEN_INDEX, scores, nullptr, between(dims, kInt), nullptr,
                       kInt, axis);
    };
    const auto hide_unless = [&](cudnnPointwiseMode_t compare, Tensor a, Tensor b) {
      const Tensor visible = pointwise(compare, a, b, between(dims, kBool), nullptr, kBool);
      scores =
          pointwise(CUDNN_POINTWISE_BINARY_SELECT, scores, minus_infinity, between(dims), visible);
    };
    {
      const Tensor row = index(2), column = index(3);
      hide_unless(CUDNN_POINTWISE_CMP_GE, row, column);
    }
    if (block.window > 0) {
      const Tensor row = index(2), column = index(3);
      const Tensor window = tensor(kCudnnWindow, kInt, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
      const Tensor end =
          pointwise(CUDNN_POINTWISE_ADD, column, window, between(dims, kInt), nullptr, kInt, 3);
      hide_unless(CUDNN_POINTWISE_CMP_GT, end, row);
    }
    return scores;
  }

  CudnnPlan plan(const CudnnTarget& target) {
    CudnnDescriptor graph(library_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    std::vector<cudnnBackendDescriptor_t> operations;
    for (const CudnnDescriptor& operation : operations_) operations.push_back(operation.get());
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
              static_cast<std::int64_t>(operations.size()), operations.data());
    if (target.handle != nullptr) set_handle(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, target);
    graph.finalize();
    CudnnDescriptor heuristics(library_, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (target.handle == nullptr)
      heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, target.properties);
    heuristics.finalize();
    constexpr std::int64_t kMost = 8;
    std::vector<CudnnDescriptor> configurations;
    std::vector<cudnnBackendDescriptor_t> raw;
    for (std::int64_t i = 0; i < kMost; ++i)
      raw.push_back(
          configurations.emplace_back(library_, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
    std::int64_t found = 0;
    library_.check(library_.get_attribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                          CUDNN_TYPE_BACKEND_DESCRIPTOR, kMost, &found, raw.data()),
                   "asking for engines");
    std::string refusal = "no engine";
    for (std::int64_t i = 0; i < found; ++i) {
      try {
        CudnnPlan made{CudnnDescriptor(library_, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR), 0,
                       static_cast<int>(operations.size())};
        made.plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[i]);
        if (target.handle != nullptr)
          set_handle(made.plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, target);
        else
          made.plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, target.properties);
        made.plan.finalize();
        made.workspace_bytes = made.plan.get_int(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
        return made;
      } catch (const Error& error) {
        refusal = error.what();
      }
    }
    fail("cuDNN {} has no plan for this attention: {}", library_.version_text(), refusal);
  }

 private:
  static void set_handle(CudnnDescriptor& descriptor, cudnnBackendAttributeName_t name,
                         const CudnnTarget& target) {
    descriptor.set(name, CUDNN_TYPE_HANDLE, 1, &target.handle);
  }
  Tensor add(CudnnDescriptor operation, Tensor result) {
    operation.finalize();
    operations_.push_back(std::move(operation));
    return result;
  }

  const CudnnLibrary& library_;
  std::list<CudnnDescriptor> made_;  // addresses stay
  std::list<CudnnDescriptor> operations_;
  std::int64_t next_virtual_ = kCudnnVirtual;
};

/// Rows are tokens.
Graph::Tensor rows(Graph& graph, CudnnTensor id, cudnnDataType_t type, std::int64_t batch,
                   std::int64_t heads, std::int64_t tokens, std::int64_t size,
                   const CudnnStrides& strides) {
  return graph.tensor(id, type, {batch, heads, tokens, size},
                      {strides.batch, strides.head, strides.row, 1});
}
/// The same memory with tokens as columns.
Graph::Tensor columns(Graph& graph, CudnnTensor id, cudnnDataType_t type, std::int64_t batch,
                      std::int64_t heads, std::int64_t tokens, std::int64_t size,
                      const CudnnStrides& strides) {
  return graph.tensor(id, type, {batch, heads, size, tokens},
                      {strides.batch, strides.head, 1, strides.row});
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) fail("libcudnn.so.9 has no {}", name);
}

}  // namespace

CudnnLibrary::CudnnLibrary(const char* name) {
  const std::string file = name ? name : "libcudnn.so.9";
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed again
  if (library == nullptr) fail("{}", dlerror());
  find(library, "cudnnBackendCreateDescriptor", create_descriptor);
  find(library, "cudnnBackendDestroyDescriptor", destroy_descriptor);
  find(library, "cudnnBackendSetAttribute", set_attribute);
  find(library, "cudnnBackendGetAttribute", get_attribute);
  find(library, "cudnnBackendFinalize", finalize);
  find(library, "cudnnBackendExecute", execute);
  find(library, "cudnnCreate", create);
  find(library, "cudnnDestroy", destroy);
  find(library, "cudnnSetStream", set_stream);
  find(library, "cudnnGetLastErrorString", last_error);
  find(library, "cudnnGetErrorString", error_text);
  decltype(&cudnnGetVersion) get_version;
  find(library, "cudnnGetVersion", get_version);
  version_ = static_cast<std::int64_t>(get_version());
  constexpr std::int64_t kOldest = 91000;  // device properties as an attribute of plans
  if (version_ < kOldest) fail("{} is cuDNN {}: 9.10 or later is needed", file, version_text());
}

std::string CudnnLibrary::version_text() const {
  return fmt::format("{}.{}.{}", version_ / 10000, version_ / 100 % 100, version_ % 100);
}

void CudnnLibrary::check(cudnnStatus_t status, const char* what) const {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char text[512] = "";
  last_error(text, sizeof text);
  fail("cuDNN, {}: {}{}{}", what, error_text(status), text[0] ? ": " : "", text);
}

CudnnDescriptor::CudnnDescriptor(const CudnnLibrary& library, cudnnBackendDescriptorType_t type)
    : library_(&library) {
  library.check(library.create_descriptor(type, &raw_), "making a descriptor");
}
CudnnDescriptor& CudnnDescriptor::operator=(CudnnDescriptor&& other) noexcept {
  std::swap(library_, other.library_);
  std::swap(raw_, other.raw_);
  return *this;
}
CudnnDescriptor::~CudnnDescriptor() {
  if (raw_ != nullptr) library_->destroy_descriptor(raw_);
}
void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                          std::int64_t count, const void* values) {
  library_->check(library_->set_attribute(raw_, name, type, count, values), "setting an attribute");
}
void CudnnDescriptor::set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
  const cudnnBackendDescriptor_t raw = value.get();
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
}
void CudnnDescriptor::set(cudnnBackendAttributeName_t name, std::int64_t value) {
  set(name, CUDNN_TYPE_INT64, 1, &value);
}
void CudnnDescriptor::finalize() {
  library_->check(library_->finalize(raw_), "finishing a descriptor");
}
std::int64_t CudnnDescriptor::get_int(cudnnBackendAttributeName_t name) const {
  std::int64_t value = 0, count = 0;
  library_->check(library_->get_attribute(raw_, name, CUDNN_TYPE_INT64, 1, &count, &value),
                  "reading an attribute");
  return value;
}

CudnnTarget cudnn_target(const CudnnLibrary& library, const std::string& json) {
  CudnnTarget target{nullptr, CudnnDescriptor(library, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)};
  target.properties.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                        static_cast<std::int64_t>(json.size() + 1), json.c_str());
  target.properties.finalize();
  return target;
}

CudnnPlan cudnn_forward_plan(const CudnnLibrary& library, const CudnnTarget& target,
                             const CudnnBlock& b) {
  Graph g(library);
  const Dims scores = {b.batch, b.heads, b.queries, b.keys}, row = {b.batch, b.heads, b.queries, 1};
  const Dims packed = {b.heads * b.queries, b.queries, 1, 1};
  const auto q = rows(g, kCudnnQ, kBf16, b.batch, b.heads, b.queries, b.head_size, b.q);
  const auto k = columns(g, kCudnnK, kBf16, b.batch, b.kv_heads, b.keys, b.head_size, b.kv);
  const auto v = rows(g, kCudnnV, kBf16, b.batch, b.kv_heads, b.keys, b.head_size, b.kv);
  const auto o = rows(g, kCudnnO, kFloat, b.batch, b.heads, b.queries, b.head_size, b.o);
  const auto stats = g.tensor(kCudnnStats, kFloat, row, packed);
  auto s = g.matmul(q, k, g.between(scores));
  s = g.pointwise(CUDNN_POINTWISE_MUL, s, g.scalar(kCudnnScale), g.between(scores));
  s = g.masked(s, b, scores);
  const auto top = g.reduce(CUDNN_REDUCE_TENSOR_MAX, s, g.between(row));
  s = g.pointwise(CUDNN_POINTWISE_SUB, s, top, g.between(scores));
  s = g.pointwise(CUDNN_POINTWISE_EXP, s, nullptr, g.between(scores));
  const auto sum = g.reduce(CUDNN_REDUCE_TENSOR_ADD, s, g.between(row));
  const auto log = g.pointwise(CUDNN_POINTWISE_LOG, sum, nullptr, g.between(row));
  g.pointwise(CUDNN_POINTWISE_ADD, top, log, stats);
  const auto p = g.pointwise(CUDNN_POINTWISE_DIV, s, sum, g.between(scores, kBf16));
  g.matmul(p, v, o);
  return g.plan(target);
}

CudnnPlan cudnn_backward_plan(const CudnnLibrary& library, const CudnnTarget& target,
                              const CudnnBlock& b) {
  Graph g(library);
  const Dims scores = {b.batch, b.heads, b.queries, b.keys}, row = {b.batch, b.heads, b.queries, 1};
  const Dims transposed = {b.batch, b.heads, b.keys, b.queries};
  const Dims statistics = {b.heads * b.queries, b.queries, 1, 1};
  const auto packed = [&](std::int64_t tokens) {
    return CudnnStrides{tokens * b.heads * b.head_size, b.head_size, b.heads * b.head_size};
  };
  const auto q = rows(g, kCudnnQ, kBf16, b.batch, b.heads, b.queries, b.head_size, b.q);
  const auto k = columns(g, kCudnnK, kBf16, b.batch, b.heads, b.keys, b.head_size, b.kv);
  const auto v = columns(g, kCudnnV, kBf16, b.batch, b.heads, b.keys, b.head_size, b.kv);
  const auto dout = rows(g, kCudnnDout, kBf16, b.batch, b.heads, b.queries, b.head_size, b.dout);
  const auto stats = g.tensor(kCudnnStats, kFloat, row, statistics);
  const auto o = rows(g, kCudnnO, kBf16, b.batch, b.heads, b.queries, b.head_size, b.dout);
  const auto delta = g.tensor(kCudnnDelta, kFloat, row, statistics);
  const auto gradient = [&](CudnnTensor id, std::int64_t tokens) {
    return rows(g, id, kFloat, b.batch, b.heads, tokens, b.head_size, packed(tokens));
  };
  const auto scale = g.scalar(kCudnnScale);
  const Dims tokens = {b.batch, b.heads, b.queries, b.head_size};
  const auto products = g.pointwise(CUDNN_POINTWISE_MUL, dout, o, g.between(tokens));
  const auto total = g.reduce(CUDNN_REDUCE_TENSOR_ADD, products, g.between(row));
  g.pointwise(CUDNN_POINTWISE_MUL, total, g.scalar(kCudnnOne), delta);
  auto s = g.matmul(q, k, g.between(scores));
  s = g.pointwise(CUDNN_POINTWISE_MUL, s, scale, g.between(scores));
  s = g.pointwise(CUDNN_POINTWISE_SUB, s, stats, g.between(scores));
  s = g.masked(s, b, scores);
  const auto p = g.pointwise(CUDNN_POINTWISE_EXP, s, nullptr, g.between(scores));
  g.matmul(g.reshape(p, g.between(transposed, kBf16, true)), dout, gradient(kCudnnDv, b.keys));
  auto ds = g.matmul(dout, v, g.between(scores));
  ds = g.pointwise(CUDNN_POINTWISE_SUB, ds, delta, g.between(scores));
  ds = g.pointwise(CUDNN_POINTWISE_MUL, ds, p, g.between(scores));
  ds = g.pointwise(CUDNN_POINTWISE_MUL, ds, scale, g.between(scores));
  g.matmul(g.reshape(ds, g.between(transposed, kBf16, true)), q, gradient(kCudnnDk, b.keys));
  const auto k_rows = g.tensor(kCudnnKeyRows, kBf16, {b.batch, b.heads, b.keys, b.head_size},
                               {b.kv.batch, b.kv.head, b.kv.row, 1}, true);
  const auto dq_sum =
      g.tensor(kCudnnDqSum, kFloat, {b.batch, b.heads, b.queries, b.head_size},
               {b.heads * b.queries * b.head_size, b.queries * b.head_size, b.head_size, 1});
  g.matmul(ds, g.reshape(k, k_rows), dq_sum);
  g.pointwise(CUDNN_POINTWISE_IDENTITY, dq_sum, nullptr, gradient(kCudnnDq, b.queries));
  return g.plan(target);
}

}  // namespace longspan::model::cuda

#endif
