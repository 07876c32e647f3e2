/// Small models that learn for a few steps on a mesh, against one rank: through Transformer,
/// ParameterSharding and AdamW, as train.cpp calls them.
#pragma once

#include "launcher/compute.hpp"
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
  model::OptimizerShard shard = model::OptimizerShard::kNone;
  std::int64_t sequences = 0, tokens = 29, steps = 20;
  int micro_batches = 2;  ///< of a step
  bool documents = false;
  std::vector<Batch> batches;  ///< taken in turn
};
/// Gradients and weights are those of the whole tensors, put together from what the ranks of the
/// mesh own, the same on every rank. An element is NaN if nobody owns it, or if two that do
/// disagree in a bit.
struct TrainingOutcome {
  std::vector<double> losses;          ///< of every step, the same on every rank
  std::vector<double> gradient_norms;  ///< likewise, over the mesh
  std::vector<float> first_gradients;  ///< of the first step, summed over the mesh
  std::vector<float> weights;          ///< after the last
  /// Bit for bit; what has a NaN is equal to nothing.
  bool operator==(const TrainingOutcome&) const;
};

/// "gpt2": learned positions, LayerNorm, GELU, biases, tied embeddings, dropout; "llama": RoPE,
/// RMSNorm, SwiGLU, grouped heads, packed documents; "llama-bf16": the same with model.precision =
/// bf16; "window": the same with a sliding window instead of documents, in contiguous shards.
/// `ranks` only makes the batch large enough for all of them.
TrainingProblem training_problem(const std::string& model, int ranks);
/// Optimizer steps as train.cpp makes them. `gradients`, of the ranks of mesh.replicas(), sums
/// them; `tensor` shares the weights, null: a group of mesh.tensor(); other groups are made by
/// `make_group`. Collective over the mesh.
TrainingOutcome run_training(const TrainingProblem& problem, const Mesh& mesh, model::Keep keep,
                             ProcessGroup& gradients, model::Backend backend,
                             ProcessGroup* tensor = nullptr,
                             const MakeGroup& make_group = make_mpi_group);
/// Largest |loss / expected loss - 1|; infinity if the numbers of steps differ or anything is NaN.
double loss_difference(const TrainingOutcome& outcome, const TrainingOutcome& expected);
/// Relative L2 of the first gradients. AdamW divides out a constant factor, all but clipping:
/// losses tell little of it, gradients at once.
double gradient_difference(const TrainingOutcome& outcome, const TrainingOutcome& expected);
/// Whether losses and weights are the same, bit for bit; norms may be sums in another order.
bool learned_the_same(const TrainingOutcome& outcome, const TrainingOutcome& expected);

/// All rows of world.size() ranks; they are complete on rank 0 only. Collective over `world`.
std::vector<TrainingRow> measure_training(const Communicator& world, const VerifyScope& scope,
                                          const Compute& compute);

}  // namespace longspan::launcher
