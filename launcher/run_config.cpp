#include "launcher/run_config.hpp"

#include <fmt/format.h>

#include <utility>

namespace longspan::launcher {
namespace {

/// Collects what is wrong, in the order of the settings.
class Problems {
 public:
  template <class T>
  void at_least(const char* name, T value, T least) {
    if (!(value >= least)) lines_.push_back(fmt::format("{}={}: it must be at least {}", name, value, least));
  }
  template <class... Args>
  void unless(bool fine, fmt::format_string<Args...> text, Args&&... args) {
    if (!fine) lines_.push_back(fmt::format(text, std::forward<Args>(args)...));
  }
  std::vector<std::string> take() { return std::move(lines_); }

 private:
  std::vector<std::string> lines_;
};

constexpr std::int64_t kOne = 1, kZero = 0;

void check_model(const RunConfig& c, Problems& problems) {
  const model::ModelConfig& m = c.model;
  problems.at_least("model.layers", m.layers, kOne);
  problems.at_least("model.width", m.width, kOne);
  problems.at_least("model.heads", m.heads, kOne);
  problems.at_least("model.kv-heads", m.kv_heads, kZero);
  problems.at_least("model.head-size", m.head_size, kZero);
  problems.at_least("model.mlp-width", m.mlp_width, kZero);
  problems.at_least("model.vocabulary", m.vocabulary, kZero);
  problems.at_least("model.max-positions", m.max_positions, kZero);
  problems.unless(m.dropout >= 0 && m.dropout < 1, "model.dropout={}: it must be in [0, 1)", m.dropout);
  problems.unless(m.norm_epsilon > 0, "model.norm-epsilon={}: it must be above 0", m.norm_epsilon);
  problems.unless(m.rope_theta > 0, "model.rope-theta={}: it must be above 0", m.rope_theta);
  if (m.heads < 1 || m.width < 1) return;
  problems.unless(m.kv_heads <= 0 || m.heads % m.kv_heads == 0,
                  "model.heads={} is not a multiple of model.kv-heads={}: every key head serves the same number of query heads", m.heads,
                  m.kv_heads);
  problems.unless(m.head_size != 0 || m.width % m.heads == 0,
                  "model.width={} is not a multiple of model.heads={}: change one of them or set model.head-size", m.width, m.heads);
  const std::int64_t head_size = m.head_size != 0 ? m.head_size : m.width / m.heads;
  problems.unless(head_size > 0 && head_size <= 256 && head_size % 4 == 0,
                  "a head of {} channels (model.width={} / model.heads={}): it must be a multiple of 4, up to 256", head_size, m.width,
                  m.heads);
  problems.unless(m.position != model::PositionKind::kLearned || m.max_positions == 0 || m.max_positions >= c.data.sequence_length,
                  "model.max-positions={} is less than data.sequence-length={}: raise it or set it to 0", m.max_positions,
                  c.data.sequence_length);
}

void check_training(const RunConfig& c, Problems& problems) {
  const TrainConfig& t = c.train;
  problems.at_least("train.steps", t.steps, kOne);
  problems.at_least("train.stop-after", t.stop_after, kZero);
  problems.at_least("train.micro-batch", t.micro_batch, kOne);
  problems.at_least("train.global-batch", t.global_batch, kZero);
  problems.unless(t.global_batch <= 0 || t.micro_batch < 1 || t.global_batch % t.micro_batch == 0,
                  "train.global-batch={} is not a multiple of train.micro-batch={}", t.global_batch, t.micro_batch);
  problems.at_least("train.validate-every", t.validate_every, kZero);
  problems.at_least("train.validate-sequences", t.validate_sequences, kOne);
  problems.at_least("train.patience", t.patience, kZero);
  problems.unless(t.patience == 0 || t.validate_every > 0, "train.patience={} needs train.validate-every above 0", t.patience);
  const model::OptimizerConfig& o = c.optimizer;
  problems.at_least("optimizer.learning-rate", o.learning_rate, 0.0);
  problems.at_least("optimizer.minimum-learning-rate", o.minimum_learning_rate, 0.0);
  problems.unless(o.minimum_learning_rate <= o.learning_rate,
                  "optimizer.minimum-learning-rate={} is above optimizer.learning-rate={}", o.minimum_learning_rate, o.learning_rate);
  problems.at_least("optimizer.warmup-steps", o.warmup_steps, kZero);
  problems.at_least("optimizer.weight-decay", o.weight_decay, 0.0);
  problems.at_least("optimizer.clip", o.clip, 0.0);
  problems.unless(o.beta1 >= 0 && o.beta1 < 1, "optimizer.beta1={}: it must be in [0, 1)", o.beta1);
  problems.unless(o.beta2 >= 0 && o.beta2 < 1, "optimizer.beta2={}: it must be in [0, 1)", o.beta2);
  problems.unless(o.epsilon > 0, "optimizer.epsilon={}: it must be above 0", o.epsilon);
}

}  // namespace

std::vector<std::string> problems_of(const RunConfig& c) {
  Problems problems;
  problems.unless(c.run.device == "auto" || c.run.device == "cpu" || c.run.device == "cuda",
                  "run.device={}: it must be auto, cpu or cuda", c.run.device);
  problems.unless(!c.run.name.empty() && c.run.name.find('/') == std::string::npos && c.run.name[0] != '.',
                  "run.name={}: it names a folder: no '/', no leading '.'", c.run.name);
  problems.at_least("run.threads", c.run.threads, 0);
  check_model(c, problems);
  problems.at_least("data.sequence-length", c.data.sequence_length, kOne);
  problems.unless(c.data.sequence_length < (std::int64_t{1} << 31), "data.sequence-length={}: at most 2^31 - 1",
                  c.data.sequence_length);
  problems.at_least("mesh.data", c.mesh.data, 0);
  problems.at_least("mesh.context", c.mesh.context, 0);
  problems.at_least("attention.window", c.attention.window, kZero);
  problems.at_least("memory.loss-chunk", c.memory.loss_chunk, kZero);
  check_training(c, problems);
  problems.at_least("checkpoint.every", c.checkpoint.every, kZero);
  problems.at_least("checkpoint.keep", c.checkpoint.keep, kZero);
  problems.unless(!c.checkpoint.resume.empty(), "checkpoint.resume is empty: it must be auto, never or a path");
  problems.at_least("log.every", c.log.every, kOne);
  return problems.take();
}

void resolve(RunConfig& c, std::int64_t vocabulary) {
  model::ModelConfig& m = c.model;
  if (m.kv_heads == 0) m.kv_heads = m.heads;
  if (m.head_size == 0) m.head_size = m.width / m.heads;
  if (m.mlp_width == 0) {
    // SwiGLU has three matrices: 8/3 instead of 4 keeps the number of weights (Shazeer 2020).
    const std::int64_t swiglu = (8 * m.width + 2) / 3;
    m.mlp_width = m.mlp == model::MlpKind::kGelu ? 4 * m.width : (swiglu + 63) / 64 * 64;
  }
  if (m.max_positions == 0) m.max_positions = c.data.sequence_length;
  if (m.vocabulary == 0) m.vocabulary = (vocabulary + 63) / 64 * 64;
}

}  // namespace longspan::launcher
