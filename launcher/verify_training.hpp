/// Small models that learn for a few steps on a mesh, against one rank: through Transformer,
/// GradientReducer and AdamW, as train.cpp calls them.
#pragma once

#include "launcher/verify_cases.hpp"
#include "model/transformer.hpp"
#include "parallel/mesh.hpp"

namespace longspan::launcher {

/// A small model and the global batches it learns from. Labels are shifted here, before any
/// sharding.
struct TrainingProblem {
  struct Batch {
    std::vector<std::int32_t> inputs, targets,
        documents;           ///< [sequences, tokens]; targets: -1 = none
    std::int64_t valid = 0;  ///< targets that count
  };
  model::ModelConfig config;
  model::AttentionConfig attention;
  SequenceLayout layout = SequenceLayout::kZigzag;
  std::int64_t sequences = 0, tokens = 29, steps = 20;
  bool documents = false;
  std::vector<Batch> batches;  ///< taken in turn
};
struct TrainingOutcome {
  std::vector<double> losses;                     ///< of every step, the same on every rank
  std::vector<double> gradient_norms;             ///< likewise, over data x context
  std::vector<float> first_gradients;             ///< of the first step, summed over data x context
  std::vector<float> weights;                     ///< after the last
  bool operator==(const TrainingOutcome&) const;  ///< bit for bit
};

/// "gpt2": learned positions, LayerNorm, GELU, biases, tied embeddings, dropout; "llama": RoPE,
/// RMSNorm, SwiGLU, grouped heads, packed documents; "llama-bf16": the same with model.precision =
/// bf16; "window": the same with a sliding window instead of documents, in contiguous shards.
/// `ranks` only makes the batch large enough for all of them.
TrainingProblem training_problem(const std::string& model, int ranks);
/// Optimizer steps as train.cpp makes them, two micro-batches each. `gradients` sums them over the
/// mesh. Collective over the mesh.
TrainingOutcome run_training(const TrainingProblem& problem, const Mesh& mesh, model::Keep keep,
                             ProcessGroup& gradients, model::Backend backend);
/// Largest |loss / expected loss - 1|; infinity if the numbers of steps differ or anything is NaN.
double loss_difference(const TrainingOutcome& outcome, const TrainingOutcome& expected);
/// Relative L2 of the first gradients. AdamW divides out a constant factor, all but clipping:
/// losses tell little of it, gradients at once.
double gradient_difference(const TrainingOutcome& outcome, const TrainingOutcome& expected);

/// All rows of world.size() ranks; they are complete on rank 0 only. Collective over `world`.
std::vector<TrainingRow> measure_training(const Communicator& world, const VerifyScope& scope);

}  // namespace longspan::launcher
