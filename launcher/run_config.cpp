#include "launcher/run_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <string_view>
#include <utility>

#include "parallel/watchdog.hpp"
#include "slurm/quoting.hpp"
#include "slurm/remaining_time.hpp"

namespace longspan::launcher {
namespace {

/// Collects what is wrong. Every text has the form "section.key=value ...", so that options.cpp can
/// tell what it is about.
class Problems {
 public:
  template <class... Args>
  void unless(bool fine, fmt::format_string<Args...> text, Args&&... args) {
    if (!fine) all_.push_back(fmt::format(text, std::forward<Args>(args)...));
  }
  template <class T>
  void at_least(T least, std::string_view name, T value) {
    unless(value >= least, "{}={}: it must be at least {}", name, value, least);
  }
  void above_zero(std::string_view name, double value) {
    unless(value > 0 && std::isfinite(value), "{}={}: it must be above 0", name, value);
  }
  void in_unit_interval(std::string_view name, double value) {
    unless(value >= 0 && value < 1, "{}={:.9g}: it must be at least 0 and below 1", name, value);
  }
  std::vector<std::string> take() { return std::move(all_); }

 private:
  std::vector<std::string> all_;
};

constexpr std::int64_t kZero = 0, kOne = 1;

void check_run(const RunSettings& r, Problems& problems) {
  problems.unless(
      !r.name.empty() && r.name != "." && r.name != ".." && r.name.find('/') == std::string::npos,
      "run.name={}: it names a folder: not empty and without '/'; run.directory may be any path",
      r.name);
  problems.unless(r.device == "auto" || r.device == "cpu" || r.device == "cuda",
                  "run.device={}: it must be auto, cpu or cuda", r.device);
  problems.unless(
      r.communication == "auto" || r.communication == "nccl" || r.communication == "staged",
      "run.communication={}: it must be auto, nccl or staged", r.communication);
  problems.at_least(0, "run.threads", r.threads);
  problems.unless(parallel::parse_hang_timeout(r.hang_timeout).has_value(),
                  "run.hang-timeout={}: it must be auto, off or a number of seconds, at least 1",
                  r.hang_timeout);
}

void check_heads(const model::ModelConfig& m, Problems& problems) {
  if (m.width < 1 || m.heads < 1 || m.head_size < 0) return;
  problems.unless(m.kv_heads < 1 || m.heads % m.kv_heads == 0,
                  "model.heads={} is not a multiple of model.kv-heads={}: every key/value head "
                  "serves equally many query heads",
                  m.heads, m.kv_heads);
  if (m.head_size == 0 && m.width % m.heads != 0) {
    problems.unless(false,
                    "model.width={} is not a multiple of model.heads={}: change one of them, or "
                    "set model.head-size",
                    m.width, m.heads);
    return;
  }
  const std::int64_t head_size = m.head_size == 0 ? m.width / m.heads : m.head_size;
  const std::string origin =
      m.head_size == 0 ? fmt::format("model.width={} / model.heads={} gives heads of {} channels",
                                     m.width, m.heads, head_size)
                       : fmt::format("model.head-size={}", head_size);
  problems.unless(head_size % 4 == 0 && head_size <= 256,
                  "{}: it must be a multiple of 4 and at most 256", origin);
}

void check_model(const RunConfig& c, Problems& problems) {
  const model::ModelConfig& m = c.model;
  problems.at_least(kOne, "model.layers", m.layers);
  problems.at_least(kOne, "model.width", m.width);
  problems.at_least(kOne, "model.heads", m.heads);
  problems.at_least(kZero, "model.kv-heads", m.kv_heads);
  problems.at_least(kZero, "model.head-size", m.head_size);
  problems.at_least(kZero, "model.mlp-width", m.mlp_width);
  check_heads(m, problems);
  problems.above_zero("model.norm-epsilon", m.norm_epsilon);
  problems.unless(m.rope_theta > 1, "model.rope-theta={}: it must be above 1", m.rope_theta);
  problems.unless(m.position != model::PositionKind::kSinusoidal || m.width % 2 == 0,
                  "model.width={} with model.position=sinusoidal: it must be even", m.width);
  problems.at_least(kZero, "model.max-positions", m.max_positions);
  problems.unless(
      m.position != model::PositionKind::kLearned || m.max_positions <= 0 ||
          m.max_positions >= c.data.sequence_length,
      "model.max-positions={} is less than data.sequence-length={}: raise it, or set it to 0",
      m.max_positions, c.data.sequence_length);
  problems.in_unit_interval("model.dropout", m.dropout);
  problems.at_least(kZero, "model.vocabulary", m.vocabulary);
  constexpr std::int64_t kLargestId = std::numeric_limits<std::int32_t>::max();
  problems.unless(m.vocabulary <= kLargestId, "model.vocabulary={}: it must be at most {}",
                  m.vocabulary, kLargestId);
}

void check_sequence(const RunConfig& c, Problems& problems) {
  // Positions travel with the tokens as 32-bit numbers.
  constexpr std::int64_t kLongest = std::numeric_limits<std::int32_t>::max();
  problems.at_least(kOne, "data.sequence-length", c.data.sequence_length);
  problems.unless(c.data.sequence_length <= kLongest,
                  "data.sequence-length={}: it must be at most {}", c.data.sequence_length,
                  kLongest);
  problems.at_least(0, "mesh.data", c.mesh.data);
  problems.at_least(0, "mesh.context", c.mesh.context);
  problems.at_least(0, "mesh.tensor", c.mesh.tensor);
  problems.unless(!c.mesh.elastic || c.train.global_batch != 0,
                  "mesh.elastic=on with train.global-batch=0: the batch would change with the "
                  "ranks: set train.global-batch");
  problems.unless(
      c.mesh.context <= 0 || c.data.sequence_length < 1 || c.mesh.context <= c.data.sequence_length,
      "mesh.context={} ranks cannot share data.sequence-length={} tokens: every rank needs one",
      c.mesh.context, c.data.sequence_length);
  problems.at_least(kZero, "attention.window", c.attention.window);
  problems.at_least(kZero, "memory.loss-chunk", c.memory.loss_chunk);
  problems.at_least(kZero, "memory.budget", c.memory.budget);
  problems.at_least(kZero, "memory.mlp-chunk", c.memory.mlp_chunk);
}

/// As far as it can be told without ranks and files; TrainingRun checks the rest.
void check_tensor(const RunConfig& c, Problems& problems) {
  const model::ModelConfig& m = c.model;
  const bool fine = m.width > 0 && m.heads > 0 && m.kv_heads >= 0 && m.head_size >= 0 &&
                    m.mlp_width >= 0 && m.vocabulary >= 0;
  if (c.mesh.tensor < 2 || !fine) return;
  RunConfig resolved = c;
  resolve(resolved, 0);
  for (const std::string& problem : tensor_problems(resolved.model, c.mesh.tensor))
    problems.unless(false, "{}", problem);
}

void check_train(const RunConfig& c, Problems& problems) {
  const TrainConfig& t = c.train;
  problems.at_least(kOne, "train.steps", t.steps);
  problems.at_least(kZero, "train.stop-after", t.stop_after);
  problems.at_least(kOne, "train.micro-batch", t.micro_batch);
  problems.at_least(kZero, "train.global-batch", t.global_batch);
  if (t.global_batch > 0 && t.micro_batch > 0) {
    const std::int64_t data_ranks = c.mesh.data < 1 ? 1 : c.mesh.data;
    const std::string ranks = data_ranks == 1 ? "" : fmt::format(" * mesh.data={}", data_ranks);
    problems.unless(t.global_batch % (t.micro_batch * data_ranks) == 0,
                    "train.global-batch={} is not a multiple of train.micro-batch={}{}",
                    t.global_batch, t.micro_batch, ranks);
  }
  problems.at_least(kZero, "train.validate-every", t.validate_every);
  problems.at_least(kOne, "train.validate-sequences", t.validate_sequences);
  problems.at_least(kZero, "train.patience", t.patience);
  problems.unless(t.patience <= 0 || t.validate_every > 0,
                  "train.patience={} counts validations, and train.validate-every={} means none",
                  t.patience, t.validate_every);
}

void check_optimizer(const model::OptimizerConfig& o, Problems& problems) {
  problems.above_zero("optimizer.learning-rate", o.learning_rate);
  problems.at_least(0.0, "optimizer.minimum-learning-rate", o.minimum_learning_rate);
  problems.unless(
      o.schedule == model::ScheduleKind::kConstant || !(o.minimum_learning_rate > o.learning_rate),
      "optimizer.minimum-learning-rate={} is above optimizer.learning-rate={}",
      o.minimum_learning_rate, o.learning_rate);
  problems.at_least(kZero, "optimizer.warmup-steps", o.warmup_steps);
  problems.at_least(0.0, "optimizer.weight-decay", o.weight_decay);
  problems.at_least(0.0, "optimizer.clip", o.clip);
  problems.in_unit_interval("optimizer.beta1", o.beta1);
  problems.in_unit_interval("optimizer.beta2", o.beta2);
  problems.above_zero("optimizer.epsilon", o.epsilon);
}

void check_slurm(const slurm::SlurmConfig& s, Problems& problems) {
  problems.at_least(0, "slurm.nodes", s.nodes);
  problems.at_least(0, "slurm.ranks-per-node", s.ranks_per_node);
  problems.at_least(0, "slurm.cpus-per-rank", s.cpus_per_rank);
  problems.at_least(0, "slurm.gpus-per-rank", s.gpus_per_rank);
  problems.at_least(0, "slurm.max-restarts", s.max_restarts);
  problems.at_least(0, "slurm.signal-margin", s.signal_margin);
  problems.unless(s.time.empty() || slurm::parse_slurm_time(s.time, true).value_or(0) > 0,
                  "slurm.time={}: it must be minutes, hours:minutes:seconds or "
                  "days-hours:minutes:seconds",
                  s.time);
  const std::pair<const char*, const std::string*> texts[] = {
      {"memory", &s.memory},         {"partition", &s.partition},
      {"account", &s.account},       {"qos", &s.qos},
      {"constraint", &s.constraint}, {"reservation", &s.reservation},
      {"array", &s.array},           {"dependency", &s.dependency},
      {"modules", &s.modules},       {"environment", &s.environment}};
  for (const auto& [name, text] : texts)
    problems.unless(text->find_first_of("\n\r") == std::string::npos,
                    "slurm.{}={}: a line of a batch script has no place for a line break", name,
                    slurm::sbatch_quoted(*text));
  bool closed = true;
  for (const std::string& variable : slurm::split_words(s.environment, &closed)) {
    const std::string name = variable.substr(0, variable.find('='));
    problems.unless(
        name.size() < variable.size() && !name.empty() &&
            name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                   "0123456789_") == std::string::npos &&
            (name[0] < '0' || name[0] > '9'),
        "slurm.environment={}: '{}' is not NAME=VALUE", s.environment, variable);
  }
  problems.unless(closed, "slurm.environment={}: a quote is not closed", s.environment);
  std::string_view rest = s.extra;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    problems.unless(line.empty() || line[0] == '-',
                    "slurm.extra={}: it must be options of sbatch, such as --exclusive", line);
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
  }
}

}  // namespace

std::vector<std::string> tensor_problems(const model::ModelConfig& m, int tensor) {
  struct Shared {
    const char* name;
    std::int64_t value;
    bool may_repeat;  ///< fewer than the ranks: several hold the same
    bool by(std::int64_t ranks) const {
      return value % ranks == 0 || (may_repeat && value > 0 && ranks % value == 0);
    }
  };
  const Shared all[] = {{"model.heads", m.heads, false},
                        {"model.kv-heads", m.kv_heads, true},
                        {"model.mlp-width", m.mlp_width, false},
                        {"model.vocabulary", m.vocabulary, false}};
  // One rank always can.
  int fits = tensor;
  while (!std::all_of(std::begin(all), std::end(all), [&](const Shared& s) { return s.by(fits); }))
    --fits;
  Problems problems;
  for (const Shared& s : all)
    problems.unless(s.by(tensor),
                    "{}={} cannot be shared evenly by mesh.tensor={} ranks: set it to {}, or "
                    "mesh.tensor={}, which fits the whole model",
                    s.name, s.value, tensor, (s.value / tensor + 1) * tensor, fits);
  return problems.take();
}

std::vector<std::string> problems_of(const RunConfig& c) {
  Problems problems;
  check_run(c.run, problems);
  check_model(c, problems);
  check_sequence(c, problems);
  check_tensor(c, problems);
  check_train(c, problems);
  check_optimizer(c.optimizer, problems);
  problems.at_least(kZero, "checkpoint.every", c.checkpoint.every);
  problems.at_least(kZero, "checkpoint.keep", c.checkpoint.keep);
  problems.unless(!c.checkpoint.resume.empty(),
                  "checkpoint.resume={}: it must be auto, never or the path of a checkpoint",
                  c.checkpoint.resume);
  problems.at_least(kOne, "log.every", c.log.every);
  problems.at_least(kOne, "log.trace-step", c.log.trace_step);
  check_slurm(c.slurm, problems);
  return problems.take();
}

void resolve(RunConfig& c, std::int64_t vocabulary) {
  constexpr std::int64_t kMultiple = 64;  // whole vectors and cache lines in every matrix product
  const auto round_up = [](std::int64_t n) { return (n + kMultiple - 1) / kMultiple * kMultiple; };
  model::ModelConfig& m = c.model;
  if (m.kv_heads == 0) m.kv_heads = m.heads;
  if (m.head_size == 0) m.head_size = m.width / m.heads;
  // SwiGLU has three matrices instead of two: 8/3 of the width is as many weights as 4 (Shazeer
  // 2020).
  if (m.mlp_width == 0)
    m.mlp_width = m.mlp == model::MlpKind::kGelu ? 4 * m.width : round_up((8 * m.width + 2) / 3);
  if (m.max_positions == 0) m.max_positions = c.data.sequence_length;
  if (m.vocabulary == 0) m.vocabulary = round_up(vocabulary);
}

}  // namespace longspan::launcher
