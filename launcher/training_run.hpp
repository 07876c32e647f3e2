/// A training run in pieces: what train.cpp puts together step by step. Built once per start; every
/// rank has one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint_saver.hpp"
#include "io/loader.hpp"
#include "io/token_dataset.hpp"
#include "launcher/compute.hpp"
#include "launcher/gpu_memory.hpp"
#include "launcher/memory_plan.hpp"
#include "launcher/run_config.hpp"
#include "model/adamw.hpp"
#include "model/attention_choice.hpp"
#include "model/flops.hpp"
#include "model/kernels/profiled.hpp"
#include "model/kernels/traced.hpp"
#include "model/parameter_sharding.hpp"
#include "model/transformer.hpp"
#include "parallel/mesh.hpp"

namespace longspan::launcher {

/// Where a run stands: all that changes from step to step besides the tensors.
struct Progress {
  std::int64_t step = 0;         ///< finished optimizer steps
  std::int64_t tokens = 0;       ///< valid targets seen so far
  std::int64_t next_sample = 0;  ///< data cursor
  std::vector<float> losses;     ///< of the last steps
};

/// Something of a rank's bulk communication, by what it serves.
struct ByAxis {
  double context = 0, tensor = 0, gradients = 0;  ///< gradients: and weights that ranks share
  double total() const { return context + tensor + gradients; }
};

class TrainingRun {
 public:
  /// Opens the dataset, builds the mesh and the model on the device of `compute`, resolves what is
  /// 0 in `config`. Throws the same Error on every rank. Collective.
  TrainingRun(RunConfig config, const Communicator& world, Compute compute);

  const RunConfig& config() const { return config_; }
  const Mesh& mesh() const { return mesh_; }
  model::Transformer& transformer() { return *model_; }
  model::AdamW& optimizer() { return *optimizer_; }
  model::ParameterSharding& sharding() { return *sharding_; }
  io::Loader& loader() { return *loader_; }
  Progress& progress() { return progress_; }
  int accumulation() const { return accumulation_; }
  int threads() const { return threads_; }
  const Compute& compute() const { return compute_; }
  /// What attention.scheme has come to: the same on every rank.
  const model::SchemeChoice& scheme() const { return scheme_; }

  /// Waits until the gradients are complete: summed over data x context, and over the tensor ranks
  /// where several hold the same parameter. Collective.
  void finish_gradients();
  /// L2 norm of the complete gradients of the whole model, the same on every rank. Collective over
  /// the tensor group.
  double gradient_norm() const;

  /// Model FLOPs of one optimizer step over all ranks.
  double step_flops() const;
  /// And what memory.keep computes again.
  double recomputed_step_flops() const;
  model::MemoryEstimate memory_estimate() const;
  /// Of the GPU, before the first step; nothing and 0 on the CPU.
  const std::optional<GpuRoom>& gpu_room() const { return gpu_room_; }
  std::int64_t reserved_bytes() const { return reserved_bytes_; }
  const model::RankShare& share() const { return share_; }
  /// What every layer keeps.
  const model::ActivationPlan& keep_plan() const { return memory_plan_.plan; }
  /// What mesh.elastic chose and why, one line; empty if the mesh is the configured one.
  const std::string& mesh_reason() const { return mesh_reason_; }
  /// What memory.keep=auto chose and why, one line; empty otherwise.
  const std::string& memory_reason() const { return memory_plan_.reason; }
  /// Seconds this rank has waited for bulk communication, and for data, since the run was built.
  double communication_seconds() const { return exposed_seconds().total(); }
  ByAxis exposed_seconds() const;
  /// Bytes this rank has sent in bulk since the run was built.
  ByAxis bytes_sent() const;
  double data_seconds() const { return loader_->wait_seconds(); }

  /// The operations of this rank and their time, with log.profile=on; else null.
  model::ProfiledKernels* profile() { return profile_.get(); }

  /// The micro-batch as the model wants it; `batch` must outlive it.
  model::MicroBatch micro_batch(const io::Batch& batch) const;
  /// Mean loss over train.validate-sequences sequences of the validation split: the same sequences
  /// every time and on every mesh. Collective.
  double validate();
  /// What went bad when a step's loss or gradient is not finite: a layer, a weight or a gradient.
  /// Collective.
  std::string diagnose(const std::vector<io::Batch>& batches);

  /// Writes a checkpoint of this moment, then drops the oldest beyond checkpoint.keep; returns its
  /// path. In the background: returns nothing once the copy is made, saver() tells the outcome.
  /// Collective; throws AgreedError.
  std::string save(bool in_background);
  io::CheckpointSaver& saver() { return *saver_; }
  /// Whether saves between the steps run in the background.
  bool overlaps_saves() const;
  /// Takes the right to write this run's checkpoints from whoever had it (io/fence.hpp), before
  /// restore(). Rank 0 calls it. Throws Error.
  void take_over(const io::Attempt& attempt);
  /// Throws AgreedError if a later start of this run has taken that right. Collective.
  void require_ownership() const;
  /// Continues from the checkpoint that checkpoint.resume names; returns its path, empty if the run
  /// starts from its initial weights. Opens the file of memory.offload and starts the loader.
  /// Collective.
  std::string restore();
  /// Bytes that restore() has read on this rank, and those that the whole checkpoint has.
  struct Restored {
    std::int64_t read = 0, checkpoint = 0;
  };
  const Restored& restored() const { return restored_; }

 private:
  void open_offload();
  /// What this rank updates, as tensors.
  std::vector<ShardedArray> arrays() const;
  /// What this rank writes of a checkpoint.
  std::vector<ShardedArray> written_arrays() const;
  /// Name of the parameter nearest to the loss whose gradient is not finite. Collective.
  std::string non_finite_gradient() const;
  void check_fits(const io::CheckpointFacts& facts, const std::string& path) const;

  RunConfig config_;
  io::TokenDataset dataset_;
  std::string mesh_reason_;
  Mesh mesh_;
  int threads_;
  const Compute compute_;
  std::unique_ptr<ProcessGroup> context_group_, tensor_group_, gradient_group_;
  std::unique_ptr<model::ProfiledKernels> profile_;
  std::unique_ptr<model::TracedKernels> trace_;
  const model::Backend backend_;
  model::SchemeChoice scheme_;
  model::RankShare share_;
  std::unique_ptr<OffloadStack> offload_;
  std::unique_ptr<model::Transformer> model_;
  std::unique_ptr<model::ParameterSharding> sharding_;
  std::unique_ptr<model::AdamW> optimizer_;
  std::unique_ptr<io::Loader> loader_;
  io::LoaderPlan plan_;
  int accumulation_ = 1;
  MemoryPlan memory_plan_;
  std::optional<GpuRoom> gpu_room_;
  std::int64_t reserved_bytes_ = 0;
  Progress progress_;
  Restored restored_;
  std::unique_ptr<io::Fence> fence_;            ///< on rank 0
  std::unique_ptr<io::CheckpointSaver> saver_;  ///< last: a save may be under way
};

}  // namespace longspan::launcher
