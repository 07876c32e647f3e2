/// What `longspan verify` measures, and how: the rows of its two tables, the problem behind each,
/// and the code that the ranks run. It goes through the program's own paths (model::Attention,
/// Transformer, GradientReducer); only the problems are small. Read next: verify.hpp, which judges
/// the rows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/kernels/kernels.hpp"
#include "model/oracle.hpp"
#include "model/transformer.hpp"
#include "parallel/context_parallel.hpp"
#include "parallel/mesh.hpp"

namespace longspan::launcher {

/// How much is measured.
struct VerifyScope {
  std::int64_t tokens = 193;  ///< of an attention problem; odd, so that no rank count divides it
  bool quick = false;         ///< one case of every kind instead of all combinations
};

enum class MaskCase { kCausal, kFull, kWindow, kDocuments };
std::string_view name_of(MaskCase mask);
std::string_view name_of(model::Keep keep);

/// One row of the attention table.
struct AttentionCase {
  int ranks = 1;
  std::string scheme = "ring";  ///< attention.scheme; attention_cases() lists those there are
  SequenceLayout layout = SequenceLayout::kContiguous;
  MaskCase mask = MaskCase::kCausal;
  bool grouped = false;  ///< two query heads share a key/value head
  std::int64_t tokens = 0;
  bool operator==(const AttentionCase&) const = default;
};
/// Against the oracle. Relative L2, lse: largest absolute difference; infinity where anything is
/// NaN.
struct AttentionErrors {
  double output = 0, dq = 0, dk = 0, dv = 0, lse = 0;
};
struct AttentionRow {
  AttentionCase what;
  AttentionErrors sharded, one_rank;
};

/// One row of the training table.
struct TrainingCase {
  int data = 1, context = 1;  ///< the mesh
  model::Keep keep = model::Keep::kAll;
  std::string model;  ///< "gpt2" or "llama"; training_problem() says what they are
  bool operator==(const TrainingCase&) const = default;
};
struct TrainingRow {
  TrainingCase what;
  double loss_difference = 0;     ///< largest |loss / loss of one rank - 1| over the steps
  bool same_as_keep_all = false;  ///< losses and weights, bit for bit, on every rank
  bool same_again = false;        ///< the same run once more, likewise
};

/// The rows of one rank count, in the order of the tables. Pure.
std::vector<AttentionCase> attention_cases(int ranks, const VerifyScope& scope);
std::vector<TrainingCase> training_cases(int ranks, const VerifyScope& scope);

/// Whole sequences of random queries, keys, values and gradients, the same on every rank.
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
  bool padding_is_silent = true;          ///< rows of padding: output and gradients 0, lse -inf
};

AttentionProblem attention_problem(MaskCase mask, bool grouped, std::int64_t tokens);
model::OracleOutputs attention_truth(const AttentionProblem& problem);
/// Forward and backward with the sequences spread over `group` (null: one rank). Every rank gets
/// the whole result. Collective over `group`.
AttentionResult run_attention(const AttentionProblem& problem, SequenceLayout layout,
                              ProcessGroup* group, model::Backend backend);
AttentionErrors compare(const AttentionResult& result, const model::OracleOutputs& truth);

/// A small model and the global batches it learns from. Labels are shifted here, before any
/// sharding.
struct TrainingProblem {
  struct Batch {
    std::vector<std::int32_t> inputs, targets,
        documents;           ///< [sequences, tokens]; targets: -1 = none
    std::int64_t valid = 0;  ///< targets that count
  };
  model::ModelConfig config;
  std::int64_t sequences = 0, tokens = 29, steps = 20;
  bool documents = false;
  std::vector<Batch> batches;  ///< taken in turn
};
struct TrainingOutcome {
  std::vector<double> losses;                     ///< of every step, the same on every rank
  std::vector<float> weights;                     ///< after the last
  bool operator==(const TrainingOutcome&) const;  ///< bit for bit
};

/// "gpt2": learned positions, LayerNorm, GELU, biases, tied embeddings, dropout; "llama": RoPE,
/// RMSNorm, SwiGLU, grouped heads, packed documents. `ranks` only makes the batch large enough for
/// all of them.
TrainingProblem training_problem(const std::string& model, int ranks);
/// Optimizer steps as train.cpp makes them, two micro-batches each. `gradients` sums them over the
/// mesh. Collective over the mesh.
TrainingOutcome run_training(const TrainingProblem& problem, const Mesh& mesh, model::Keep keep,
                             ProcessGroup& gradients, model::Backend backend);
/// Largest |loss / expected loss - 1|; infinity if the numbers of steps differ or anything is NaN.
double loss_difference(const TrainingOutcome& outcome, const TrainingOutcome& expected);

/// All rows of world.size() ranks; they are complete on rank 0 only. Collective over `world`.
std::vector<AttentionRow> measure_attention(const Communicator& world, const VerifyScope& scope);
std::vector<TrainingRow> measure_training(const Communicator& world, const VerifyScope& scope);

}  // namespace longspan::launcher
