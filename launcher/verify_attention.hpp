/// Attention over sequences that ranks share, against the oracle: the problems, the run through
/// model::Attention, the comparison. Only the problems are small; the code is the one that trains.
#pragma once

#include "launcher/compute.hpp"
#include "launcher/verify_cases.hpp"
#include "model/kernels/kernels.hpp"
#include "model/oracle.hpp"

namespace longspan::launcher {

/// Whole sequences of random queries, keys, values and gradients, the same on every rank. With
/// config.precision = bf16 q, k and v are rounded on their way into attention, as model/block.cpp
/// does, and for the oracle, apart from the program's own rounding.
struct AttentionProblem {
  model::ModelConfig config;
  model::AttentionConfig attention;
  std::int64_t sequences = 2, tokens = 0;
  std::vector<float> q, k, v, dout;     ///< [sequences, tokens, heads or kv_heads, head_size]
  std::vector<std::int32_t> documents;  ///< [sequences, tokens]; empty: one per sequence
};
/// What came out, put together to whole sequences in the order of the positions.
struct AttentionResult {
  std::vector<float> output, dq, dk, dv;  ///< shaped like q, q, k, v
  std::vector<float> lse;                 ///< [sequences, heads, tokens]
  bool padding_is_silent = true, keeps_agree = true, same_again = true;  ///< as in AttentionErrors
};

AttentionProblem attention_problem(const AttentionCase& what);
model::OracleOutputs attention_truth(const AttentionProblem& problem);
SequenceShards whole_sequence(std::int64_t tokens);  ///< on one rank
/// Forward and backward with the sequences shared as `shards` say, by problem.attention.scheme, and
/// again the ways of memory.keep. Every rank gets the whole result. Collective over shards.group,
/// whose all_reduce_sum puts the result together: no scheme uses it.
AttentionResult run_attention(const AttentionProblem& problem, const SequenceShards& shards,
                              model::Backend backend);
AttentionErrors compare(const AttentionResult& result, const AttentionProblem& problem,
                        const model::OracleOutputs& truth);

/// All rows of world.size() ranks; they are complete on rank 0 only. Collective over `world`.
std::vector<AttentionRow> measure_attention(const Communicator& world, const VerifyScope& scope,
                                            const Compute& compute);

}  // namespace longspan::launcher
