/// Everything a run can be told: the config structs of all folders and the checks that span them.
/// Read next: options.hpp, where each field gets its name, unit and help.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/config.hpp"
#include "launcher/duration.hpp"
#include "model/config.hpp"
#include "parallel/config.hpp"
#include "slurm/config.hpp"

namespace longspan::launcher {

struct RunSettings {
  std::string name = "run";
  std::string directory;  ///< empty = runs/<name>
  std::uint64_t seed = 1;
  std::string device = "auto";         ///< auto | cpu | cuda
  std::string communication = "auto";  ///< between GPUs: auto | nccl | staged
  bool share_gpu = false;              ///< several ranks on one GPU
  bool deterministic = false;          ///< the same bits in every run, on a GPU too
  int threads = 0;                     ///< per rank; 0 = cores of the node / ranks on it
  std::string hang_timeout = "auto";   ///< auto | off | seconds
};

struct TrainConfig {
  std::int64_t steps = 100;
  std::int64_t stop_after = 0;      ///< leave after this many steps of this start, exit 75; 0 = off
  std::int64_t global_batch = 0;    ///< sequences per optimizer step; 0 = micro-batch * data ranks
  std::int64_t micro_batch = 1;     ///< sequences per forward on one data rank
  std::int64_t validate_every = 0;  ///< steps; 0 = off
  std::int64_t validate_sequences = 16;  ///< sequences of the validation split used each time
  std::int64_t patience =
      0;                ///< validations without a better loss before the run ends early; 0 = off
  Duration time_limit;  ///< of this start: save and leave before it is over, exit 75; 0 = none
};

struct LogConfig {
  std::int64_t every = 1;       ///< steps between table lines on the terminal
  bool profile = false;         ///< at the end, where the time of a step went
  bool tensorboard = false;     ///< the metrics as TensorBoard event files too
  std::string trace;            ///< file for one step as a picture; empty = none
  std::int64_t trace_step = 3;  ///< which one of this start, from 1
};

struct RunConfig {
  RunSettings run;
  model::ModelConfig model;
  io::DataConfig data;
  MeshConfig mesh;
  model::AttentionConfig attention;
  model::MemoryConfig memory;
  TrainConfig train;
  model::OptimizerConfig optimizer;
  io::CheckpointConfig checkpoint;
  LogConfig log;
  slurm::SlurmConfig slurm;

  std::string directory() const {
    return run.directory.empty() ? "runs/" + run.name : run.directory;
  }
};

/// What is wrong with the values themselves and with their combination, one line each, all at once;
/// empty = fine. Needs neither ranks nor files.
std::vector<std::string> problems_of(const RunConfig& config);

/// What of a resolved model `tensor` ranks cannot share evenly, one line each; empty = fine. A
/// vocabulary of 0 (not known yet) is fine.
std::vector<std::string> tensor_problems(const model::ModelConfig& model, int tensor);

/// Replaces every 0 that means "work it out" and can be worked out without files: kv-heads,
/// head-size, mlp-width, ... `vocabulary` is the dataset's (used when model.vocabulary is 0).
void resolve(RunConfig& config, std::int64_t vocabulary);

}  // namespace longspan::launcher
