#include "launcher/verify_attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>

#include "model/attention.hpp"
#include "parallel/error.hpp"
#include "parallel/host_copy.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

using namespace model;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::uint64_t kKey = 0x76657269;

std::vector<float> normals(std::int64_t count, std::uint64_t key, float deviation) {
  std::vector<float> x;
  for (std::int64_t i = 0; i < count; ++i)
    x.push_back(deviation * normal_at(key, static_cast<std::uint64_t>(i)));
  return x;
}

bool same_bits(Backend backend, View<const float> a, View<const float> b) {
  if (a.size() != b.size() || a.empty()) return a.size() == b.size();
  const OnHost<float> left(backend.device, backend.stream, a),
      right(backend.device, backend.stream, b);
  return std::memcmp(left.view().data(), right.view().data(),
                     static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

/// Nearest number with 8 significant bits, ties to even: not by the kernel that is verified.
float nearest_bf16(float x) {
  int exponent = 0;
  const double mantissa = std::frexp(static_cast<double>(x), &exponent);
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8));
}

std::int64_t kv_width_of(const ModelConfig& config) {
  return config.kv_heads * config.head_size;
}

/// What a rank puts into attention, and what comes out, in its own order of tokens.
class RankRun {
 public:
  RankRun(const AttentionProblem& problem, const SequenceShards& shards, Backend backend)
      : problem_(problem), shards_(shards), backend_(backend) {
    const std::int64_t rows = problem.sequences * shards.tokens(), width = problem.config.width;
    const std::int64_t kv_width = kv_width_of(problem.config);
    qkv_ = Buffer<float>(backend.device, rows, width + 2 * kv_width);
    dout_ = Buffer<float>(backend.device, rows, width);
    batch_.sequences = problem.sequences;
    constexpr float kPoison = 1e3f;  // in the rows of padding: whoever looks at them shows it
    write_from_host(backend.device, backend.stream, qkv_.view(), [&](View<float> qkv) {
      each_row(shards.mine(), [&](std::int64_t row, std::int64_t from) {
        float* const packed = qkv.row(row);
        if (from < 0) {
          std::fill_n(packed, qkv.cols(), kPoison);
          return;
        }
        std::copy_n(&problem.q[from * width], width, packed);
        std::copy_n(&problem.k[from * kv_width], kv_width, packed + width);
        std::copy_n(&problem.v[from * kv_width], kv_width, packed + width + kv_width);
      });
    });
    write_from_host(backend.device, backend.stream, dout_.view(), [&](View<float> dout) {
      each_row(shards.mine(), [&](std::int64_t row, std::int64_t from) {
        if (from < 0)
          std::fill_n(dout.row(row), width, kPoison);
        else
          std::copy_n(&problem.dout[from * width], width, dout.row(row));
      });
    });
    if (problem.config.precision == Precision::kBf16) {  // as model/block.cpp
      backend.kernels.round_to_bf16(qkv_.size(), qkv_.data(), backend.stream);
      backend.kernels.round_to_bf16(dout_.size(), dout_.data(), backend.stream);
    }
    if (!problem.documents.empty())
      for (const auto& positions : shards.positions)
        each_row(positions, [&, &theirs = pass_.documents.emplace_back()](auto, auto from) {
          theirs.push_back(from < 0 ? 0 : problem.documents[static_cast<std::size_t>(from)]);
        });
  }

  /// All ways of memory.keep. Collective.
  void run() {
    const Attention attention(problem_.config, problem_.attention, backend_);
    const auto gradients = [&](Attention::Saved& saved) {
      Buffer<float> dqkv(backend_.device, qkv_.rows(), qkv_.cols());
      // As model/block.cpp: what has been exchanged makes qkv unnecessary.
      attention.backward(dout_, saved.exchanged ? View<const float>() : View<const float>(qkv_),
                         saved, dqkv, pass_);
      return dqkv;
    };
    attention.forward(qkv_, saved_, pass_);
    dqkv_ = gradients(saved_);
    saved_.exchanged.reset();  // memory.keep=attention
    keeps_agree_ = same_bits(backend_, gradients(saved_), dqkv_);
    Attention::Saved again;  // memory.keep=block, and the same once more
    attention.forward(qkv_, again, pass_);
    same_again_ = same_bits(backend_, again.output_NHK, saved_.output_NHK) &&
                  same_bits(backend_, again.lse, saved_.lse);
    const bool same_gradients = same_bits(backend_, gradients(again), dqkv_);
    same_again_ = same_again_ && same_gradients;
    keeps_agree_ = keeps_agree_ && same_again_;
  }

  /// Writes this rank's part of the whole sequences and leaves the rest as it is.
  void put_into(AttentionResult& result) const {
    const std::int64_t width = problem_.config.width, kv_width = kv_width_of(problem_.config);
    result.keeps_agree = keeps_agree_, result.same_again = same_again_;
    const OnHost<float> output(backend_.device, backend_.stream, saved_.output_NHK),
        gradients(backend_.device, backend_.stream, dqkv_);
    each_row(shards_.mine(), [&](std::int64_t row, std::int64_t to) {
      const float* const o = output.view().row(row);
      const float* const d = gradients.view().row(row);
      if (to < 0) {
        const auto zero = [](float x) { return x == 0; };
        if (!std::all_of(o, o + width, zero) || !std::all_of(d, d + dqkv_.cols(), zero))
          result.padding_is_silent = false;
        return;
      }
      std::copy_n(o, width, &result.output[to * width]);
      std::copy_n(d, width, &result.dq[to * width]);
      std::copy_n(d + width, kv_width, &result.dk[to * kv_width]);
      std::copy_n(d + width + kv_width, kv_width, &result.dv[to * kv_width]);
    });
    put_lse_into(result);
  }

 private:
  /// Calls visit(row of the shard, row of the whole problem or -1 for padding).
  template <class Visit>
  void each_row(const std::vector<std::int32_t>& positions, Visit&& visit) const {
    std::int64_t row = 0;
    for (std::int64_t b = 0; b < problem_.sequences; ++b)
      for (const std::int32_t p : positions) visit(row++, p < 0 ? -1 : b * problem_.tokens + p);
  }

  /// saved.lse: [B, own heads, tokens of the neighbours that share out the heads].
  void put_lse_into(AttentionResult& result) const {
    int sharing = 1;
    for (const VerifiedScheme& scheme : verified_schemes())
      if (scheme.kind == problem_.attention.scheme && shards_.ranks() > 1)
        sharing = scheme.inner(problem_.config, shards_.ranks());
    const int first_rank = shards_.index / sharing * sharing;
    const std::int64_t heads = problem_.config.heads;
    const std::int64_t first_head = part_begin(heads, shards_.index - first_rank, sharing);
    const std::int64_t end_head = part_begin(heads, shards_.index - first_rank + 1, sharing);
    const OnHost<float> sums(backend_.device, backend_.stream, saved_.lse);
    const float* lse = sums.view().data();
    if (saved_.lse.size() !=
        problem_.sequences * (end_head - first_head) * sharing * shards_.tokens())
      fail("verify: {} log-sum-exps are not [B={}, heads={}, tokens={}]", saved_.lse.size(),
           problem_.sequences, end_head - first_head, sharing * shards_.tokens());
    for (std::int64_t b = 0; b < problem_.sequences; ++b)
      for (std::int64_t h = first_head; h < end_head; ++h)
        for (int rank = first_rank; rank < first_rank + sharing; ++rank)
          for (const std::int32_t p : shards_.positions[static_cast<std::size_t>(rank)]) {
            if (p < 0 && *lse != -kInfinity) result.padding_is_silent = false;
            if (p >= 0)
              result.lse[static_cast<std::size_t>((b * heads + h) * problem_.tokens + p)] = *lse;
            ++lse;
          }
  }

  const AttentionProblem& problem_;
  const SequenceShards& shards_;
  Backend backend_;
  Buffer<float> qkv_, dout_, dqkv_;
  MicroBatch batch_;
  PassContext pass_{shards_, batch_, false, {}};
  Attention::Saved saved_;
  bool keeps_agree_ = false, same_again_ = false;
};

}  // namespace

SequenceShards whole_sequence(std::int64_t tokens) {
  return shard_sequence(tokens, SequenceLayout::kContiguous, nullptr);
}

AttentionProblem attention_problem(const AttentionCase& what) {
  AttentionProblem problem;
  ModelConfig& config = problem.config = heads_config(what.heads, what.ranks);
  config.precision = what.precision;
  problem.tokens = what.tokens;
  // Short ones many times: the errors of a few numbers are luck, and so is their ratio.
  problem.sequences = std::max<std::int64_t>(2, 200 / what.tokens);
  const std::int64_t shard = (what.tokens + what.ranks - 1) / what.ranks;
  const bool full = what.mask == MaskCase::kFull || what.mask == MaskCase::kFullWindow;
  problem.attention.mask = full ? MaskKind::kFull : MaskKind::kCausal;
  if (what.mask == MaskCase::kShortWindow || what.mask == MaskCase::kFullWindow)
    problem.attention.window = shard / 3 + 2;
  if (what.mask == MaskCase::kLongWindow) problem.attention.window = shard + shard / 2 + 1;
  problem.attention.scheme = verified_scheme(what.scheme).kind;
  if (what.mask == MaskCase::kDocuments)
    for (std::int64_t b = 0; b < problem.sequences; ++b)
      for (std::int64_t p = 0; p < what.tokens; ++p)
        problem.documents.push_back(
            static_cast<std::int32_t>((p + 11 * b) / (what.tokens / 4 + 3)));
  const std::int64_t rows = problem.sequences * what.tokens;
  const std::int64_t kv_width = kv_width_of(config);
  problem.q = normals(rows * config.width, kKey, 1.5f);
  problem.k = normals(rows * kv_width, kKey + 1, 1.5f);
  problem.v = normals(rows * kv_width, kKey + 2, 1.0f);
  problem.dout = normals(rows * config.width, kKey + 3, 1.0f);
  return problem;
}

OracleOutputs attention_truth(const AttentionProblem& problem) {
  const auto positions = sequence_positions(problem.tokens, 0, 1, SequenceLayout::kContiguous);
  AttentionShape shape;
  shape.batch = problem.sequences;
  shape.queries = shape.keys = problem.tokens;
  shape.heads = problem.config.heads, shape.kv_heads = problem.config.kv_heads;
  shape.head_size = problem.config.head_size;
  shape.query_positions = shape.key_positions = positions.data();
  if (!problem.documents.empty())
    shape.query_documents = shape.key_documents = problem.documents.data();
  shape.mask = {problem.attention.mask == MaskKind::kCausal, problem.attention.window};
  shape.scale = 1.0f / std::sqrt(static_cast<float>(problem.config.head_size));
  if (problem.config.precision == Precision::kFp32)
    return attention_oracle(shape, {problem.q, problem.k, problem.v, problem.dout});
  const auto rounded = [](std::vector<float> x) {
    std::transform(x.begin(), x.end(), x.begin(), nearest_bf16);
    return x;
  };
  const std::vector<float> q = rounded(problem.q), k = rounded(problem.k), v = rounded(problem.v);
  return attention_oracle(shape, {q, k, v, problem.dout});
}

AttentionResult run_attention(const AttentionProblem& problem, const SequenceShards& shards,
                              Backend backend) {
  RankRun mine(problem, shards, backend);
  mine.run();
  AttentionResult result;
  result.output.resize(problem.q.size()), result.dq.resize(problem.q.size());
  result.dk.resize(problem.k.size()), result.dv.resize(problem.k.size());
  result.lse.resize(
      static_cast<std::size_t>(problem.sequences * problem.config.heads * problem.tokens));
  mine.put_into(result);
  if (shards.ranks() == 1) return result;

  // Every number has one owner and is 0 elsewhere: the sums are exact, whole sequences. What two
  // ranks believed to be theirs comes out wrong, as it should.
  bool* const flags[] = {&result.padding_is_silent, &result.keeps_agree, &result.same_again};
  std::vector<float> violations;
  for (const bool* flag : flags) violations.push_back(*flag ? 0.0f : 1.0f);
  for (std::vector<float>* part :
       {&result.output, &result.dq, &result.dk, &result.dv, &result.lse, &violations}) {
    const std::size_t bytes = part->size() * sizeof(float);
    Buffer<float> sum(backend.device, static_cast<std::int64_t>(part->size()));
    backend.device.copy(sum.data(), part->data(), bytes, backend.stream);
    shards.group->all_reduce_sum(sum)->wait();
    backend.device.copy(part->data(), sum.data(), bytes, backend.stream);
  }
  for (std::size_t i = 0; i < violations.size(); ++i) *flags[i] = violations[i] == 0.0f;
  return result;
}

AttentionErrors compare(const AttentionResult& result, const AttentionProblem& problem,
                        const OracleOutputs& truth) {
  AttentionErrors errors;
  errors.output = relative_error(result.output, truth.output);
  errors.dq = relative_error(result.dq, truth.dq);
  errors.dk = relative_error(result.dk, truth.dk);
  errors.dv = relative_error(result.dv, truth.dv);
  errors.lse = problem.config.precision == Precision::kBf16 ? relative_error(result.lse, truth.lse)
                                                            : largest_error(result.lse, truth.lse);
  errors.padding_is_silent = result.padding_is_silent;
  errors.keeps_agree = result.keeps_agree;
  errors.same_again = result.same_again;
  return errors;
}

std::vector<AttentionRow> measure_attention(const Communicator& world, const VerifyScope& scope,
                                            const Compute& compute) {
  struct Reference {
    OracleOutputs truth;
    AttentionErrors one_rank;
  };
  // Rank 0's alone.
  std::map<std::tuple<MaskCase, HeadsCase, std::int64_t, Precision>, Reference> references;
  const Backend backend = compute.backend;
  const auto group = world.size() > 1 ? compute.make_group(world) : nullptr;
  std::vector<AttentionRow> rows;
  for (const AttentionCase& what : attention_cases(world.size(), scope)) {
    const AttentionProblem problem = attention_problem(what);
    const SequenceShards shards =
        split_for(verified_scheme(what.scheme), problem.config,
                  shard_sequence(what.tokens, what.layout, group.get()), world, compute.make_group);
    const AttentionResult result = run_attention(problem, shards, backend);
    if (world.rank() != 0) continue;
    Reference& reference = references[{what.mask, what.heads, what.tokens, what.precision}];
    if (reference.truth.output.empty()) {
      reference.truth = attention_truth(problem);
      const auto alone = run_attention(problem, whole_sequence(what.tokens), backend);
      reference.one_rank = compare(alone, problem, reference.truth);
    }
    rows.push_back({what, compare(result, problem, reference.truth), reference.one_rank});
  }
  return rows;
}

}  // namespace longspan::launcher
