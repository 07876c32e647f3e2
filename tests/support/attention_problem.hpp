/// Random attention problems, and a kernel run on them: what tests and benchmarks of attention
/// share.
#pragma once

#include <cstdint>
#include <vector>

#include "model/kernels/attention.hpp"
#include "support/attention_reference.hpp"

namespace longspan::testing_support {

/// Contiguous tensors, laid out as in AttentionInputs.
struct AttentionProblem {
  model::AttentionShape shape;  ///< points into the vectors once bind() has run
  std::vector<std::int32_t> query_positions, key_positions, query_documents, key_documents;
  std::vector<float> q, k, v, dout;

  /// Normal numbers, logits of standard deviation 2.25. Positions count up; queries end where the
  /// keys do, as in decoding and in the last shard of a sequence.
  AttentionProblem(std::int64_t batch, std::int64_t queries, std::int64_t keys, std::int64_t heads,
                   std::int64_t kv_heads, std::int64_t head_size, model::AttentionMask mask = {});

  /// Documents of 77 tokens, shifted in every sequence of the batch: a function of the position
  /// alone.
  AttentionProblem& with_documents();

  /// Operands become the nearest bfloat16 numbers, and the shape says that they are.
  AttentionProblem& rounded_to_bf16();

  const model::AttentionShape& bind();
  AttentionOutputs reference();

  /// The tokens given, by index, with their positions.
  AttentionProblem slice(const std::vector<std::int32_t>& queries,
                         const std::vector<std::int32_t>& keys) const;
};

std::vector<std::int32_t> counting(std::int64_t count, std::int32_t from = 0);

struct AttentionForward {
  std::vector<float> o, lse, sum;
  bool gaps_are_untouched = true;
};
struct AttentionGradients {
  std::vector<float> dq, dk, dv;
  bool gaps_are_untouched = true;
};

/// Who computes: the CPU's kernels, or, in a derived class, others behind the same host pointers.
class AttentionRunner {
 public:
  virtual ~AttentionRunner() = default;
  virtual void forward(const model::AttentionForwardArgs& args);
  virtual void delta(const model::AttentionDeltaArgs& args);
  virtual void backward(const model::AttentionBackwardArgs& args);
};
AttentionRunner& cpu_attention();

/// With `merged`, of a call with `more`, the call continues from it; else o, lse and sum start as
/// NaN. gap > 0: rows and sequences lie apart in memory, with NaN between them.
AttentionForward attention_forward(AttentionProblem& problem, std::int64_t gap = 0,
                                   const AttentionForward* merged = nullptr, bool more = false,
                                   AttentionRunner& runner = cpu_attention());

/// With the o and lse given, which may come from more keys than the problem's. Gradients start at
/// `start`.
AttentionGradients attention_backward(AttentionProblem& problem, const AttentionForward& saved,
                                      std::int64_t gap = 0, float start = 0.0f,
                                      AttentionRunner& runner = cpu_attention());

}  // namespace longspan::testing_support
