/// The cases that every backend's attention must pass, against the dense oracle in double. Sizes
/// that a backend wants otherwise (matrix units have head sizes of their own, the emulator is slow)
/// are arguments.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "support/attention_problem.hpp"

namespace longspan::testing_support {

constexpr double kAttentionLseBound = 1e-5;

/// Whose attention, and of which precision.
struct AttentionSubject {
  AttentionRunner& runner;
  bool bf16 = false;  ///< products in bf16, of inputs that are bf16 already

  /// Relative, of outputs and gradients: 2e-6, or 4e-3 in bf16.
  double bound() const { return bf16 ? 4e-3 : 2e-6; }
  /// Asks for the precision; in bf16 the inputs become such values.
  AttentionProblem& prepare(AttentionProblem& problem) const;
  AttentionForward forward(AttentionProblem& problem, std::int64_t gap = 0,
                           const AttentionForward* merged = nullptr, bool more = false) const {
    return attention_forward(problem, gap, merged, more, runner);
  }
  AttentionGradients backward(AttentionProblem& problem, const AttentionForward& saved,
                              std::int64_t gap = 0, float start = 0.0f) const {
    return attention_backward(problem, saved, gap, start, runner);
  }
};

void expect_equal(const AttentionSubject& subject, const AttentionForward& actual,
                  const AttentionOutputs& expected);
void expect_equal(const AttentionSubject& subject, const AttentionGradients& actual,
                  const AttentionOutputs& expected, double floor = 0.0);
/// Forward and backward, with gaps between rows.
void expect_equal_to_oracle(const AttentionSubject& subject, AttentionProblem& problem,
                            std::int64_t gap = 0);

struct AttentionVariant {
  std::string name;
  std::int64_t batch, queries, keys, heads, kv_heads, head_size;
  model::AttentionMask mask;
  bool documents = false;

  AttentionProblem problem() const;
};
void PrintTo(const AttentionVariant& variant, std::ostream* out);
/// Masks, documents, grouped heads, head sizes and numbers of tokens.
std::vector<AttentionVariant> attention_variants();

/// Positions need not be in order: any permutation of the tokens is the same attention.
void expect_positions_not_indices(const AttentionSubject& subject, std::int64_t head_size);
/// `blocks`: numbers of keys, one behind the other, merged in every order.
void expect_blocks_merge_in_any_order(const AttentionSubject& subject, std::int64_t head_size,
                                      std::int64_t queries,
                                      const std::vector<std::int32_t>& blocks);
/// Rank r of P holds chunks r and 2P-1-r, with 6 tokens of padding behind; blocks of keys pass in
/// ring order, and what a rank does not hold of the keys' gradients is added up.
struct ZigzagCase {
  int ranks, chunk;
  std::int64_t batch, heads, kv_heads;
  bool documents;
};
void expect_zigzag_shards_equal_dense(const AttentionSubject& subject, const ZigzagCase& tested);
/// Positions known on the host (PositionRuns), of a whole sequence and of zigzag shards of two
/// ranks, against all of them.
void expect_known_runs_change_nothing(const AttentionSubject& subject, int chunk,
                                      std::int64_t window = 0);
/// Some rows see nothing, and what stands at padding is NaN: neither may show anywhere.
void expect_padding_is_never_read(const AttentionSubject& subject);
void expect_nothing_visible_is_zero(const AttentionSubject& subject);
void expect_no_keys_and_no_queries(const AttentionSubject& subject, std::int64_t head_size);
/// Logits of +-1e4 that are exact in the precision asked for, so that the oracle's answer is the
/// kernel's too. `keys_differ`: by fractions within such logits, and gradients are looked at, for
/// kernels that subtract the maximum before they go to base 2.
void expect_huge_logits_stay_finite(const AttentionSubject& subject, std::int64_t head_size,
                                    bool keys_differ);
void expect_nan_is_not_hidden(const AttentionSubject& subject, std::int64_t head_size);
void expect_gradients_accumulate(const AttentionSubject& subject);

}  // namespace longspan::testing_support
