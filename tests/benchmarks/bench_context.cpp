// ranks: 2
/// Attention of one sequence, forward and backward, shared by P ranks of one thread each, against
/// one rank that does the same work with P threads; how much of the communication nothing hides,
/// and how evenly the layouts share the visible pairs. Under mpirun, unbound:
///   mpirun -n P --bind-to none bench_context [--tiny] [--tokens N] [--heads H] [--kv-heads H]
///                                            [--head-size D] [--window W] [--full]
///                                            [--scheme ring|allgather|ulysses|hybrid]
///                                            [--repeats R]
/// FLOPs are those of the visible pairs: forward 4 pairs head_size per head, backward 10. The two
/// measurements alternate, because clocks and neighbours change; the ratio is the median of the
/// ratios of neighbours. cpu_s is the CPU time of all threads of all ranks. Results are compared
/// with each other first.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "launcher/machine.hpp"
#include "model/attention.hpp"
#include "model/attention_choice.hpp"
#include "support/peak.hpp"

namespace longspan {
namespace {

using model::AttentionSchemeKind;

struct Options {
  std::map<std::string, std::int64_t, std::less<>> numbers = {
      {"--tokens", 16384}, {"--heads", 2},  {"--kv-heads", 2},
      {"--head-size", 64}, {"--window", 0}, {"--repeats", 5}};
  std::string scheme = "ring";
  bool full = false;
  std::int64_t operator[](const char* name) const { return numbers.find(name)->second; }
};

[[noreturn]] void usage(const std::string& problem) {
  fmt::print(stderr,
             "bench_context: {}\nusage: mpirun -n P --bind-to none bench_context [--tiny] [--full] "
             "[--tokens N] [--heads H] [--kv-heads H] [--head-size D] [--window W] [--scheme NAME] "
             "[--repeats R]\n",
             problem);
  std::exit(2);
}

const std::map<std::string, AttentionSchemeKind, std::less<>> kSchemes = {
    {"ring", AttentionSchemeKind::kRing},
    {"allgather", AttentionSchemeKind::kAllgather},
    {"ulysses", AttentionSchemeKind::kUlysses},
    {"hybrid", AttentionSchemeKind::kHybrid}};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--tiny") {
      options.numbers["--tokens"] = 384, options.numbers["--repeats"] = 2;
    } else if (name == "--full") {
      options.full = true;
    } else if (name == "--scheme" && i + 1 < argc && kSchemes.count(argv[i + 1]) > 0) {
      options.scheme = argv[++i];
    } else if (options.numbers.count(name) > 0 && i + 1 < argc) {
      char* end = nullptr;
      options.numbers[name] = std::strtoll(argv[++i], &end, 10);
      if (*end != '\0' || options.numbers[name] < (name == "--window" ? 0 : 1))
        usage(fmt::format("{} wants a number, not '{}'", name, argv[i]));
    } else {
      usage(fmt::format("'{}' is unknown or lacks its value", name));
    }
  }
  if (options["--heads"] % options["--kv-heads"] != 0)
    usage("--heads must be a multiple of --kv-heads");
  return options;
}

/// Waits for everybody without taking a core from those who still compute.
void meet(const Communicator& world) {
  MPI_Request request;
  MPI_Ibarrier(world.raw(), &request);
  for (int done = 0; !done;) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (!done) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Of all threads of this process: what a step costs even while neighbours take the cores.
double cpu_now() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// The tokens of `shards` of the one sequence, and attention on them.
class Attention {
 public:
  Attention(const Options& o, AttentionSchemeKind scheme, SequenceShards shards)
      : shards_(std::move(shards)), pass_{shards_, batch_, false, {}} {
    model::ModelConfig config;
    config.heads = o["--heads"], config.kv_heads = o["--kv-heads"];
    config.head_size = o["--head-size"];
    attention_.emplace(
        config,
        model::AttentionConfig{o.full ? model::MaskKind::kFull : model::MaskKind::kCausal,
                               o["--window"], scheme},
        model::cpu_backend());
    batch_.sequences = 1;
    const std::int64_t query = config.heads * config.head_size;
    const std::int64_t row = query + 2 * config.kv_heads * config.head_size;
    qkv_ = Buffer<float>(cpu_device(), shards_.tokens(), row);
    dqkv_ = Buffer<float>(cpu_device(), shards_.tokens(), row);
    dout_ = Buffer<float>(cpu_device(), shards_.tokens(), query);
    for (std::int64_t t = 0; t < shards_.tokens(); ++t) {
      // A row depends on its position alone: the same on every rank that has it.
      std::mt19937 random(static_cast<unsigned>(shards_.mine()[static_cast<std::size_t>(t)] + 1));
      std::normal_distribution<float> normal(0.0f, 1.5f);
      for (std::int64_t c = 0; c < row; ++c) qkv_.view().row(t)[c] = normal(random);
      for (std::int64_t c = 0; c < query; ++c) dout_.view().row(t)[c] = normal(random);
    }
  }

  void run() {
    model::Attention::Saved saved;
    attention_->forward(qkv_, saved, pass_);
    attention_->backward(dout_, saved.exchanged ? View<const float>() : qkv_.view(), saved, dqkv_,
                         pass_);
    output_ = std::move(saved.output_NHK);
  }
  const SequenceShards& shards() const { return shards_; }

  /// Squares of the difference to `whole`, which has all tokens in order, and of `whole` itself.
  std::pair<double, double> difference(const Attention& whole) const {
    double squares = 0, norm = 0;
    const auto add = [&](const Buffer<float>& mine, const Buffer<float>& theirs) {
      for (std::int64_t t = 0; t < mine.rows(); ++t) {
        const std::int64_t position = shards_.mine()[static_cast<std::size_t>(t)];
        for (std::int64_t c = 0; position >= 0 && c < mine.cols(); ++c) {
          const double right = theirs.view().row(position)[c];
          squares += std::pow(mine.view().row(t)[c] - right, 2), norm += right * right;
        }
      }
    };
    add(output_, whole.output_);
    add(dqkv_, whole.dqkv_);
    return {squares, norm};
  }

 private:
  SequenceShards shards_;
  model::MicroBatch batch_;
  model::PassContext pass_;
  std::optional<model::Attention> attention_;
  Buffer<float> qkv_, dqkv_, dout_, output_;
};

/// Visible pairs of every rank: the largest over the mean; `sum` gets their number.
double balance(const Options& o, int ranks, SequenceLayout layout, double& sum) {
  const auto keys = sequence_positions(o["--tokens"], 0, 1, layout);
  double largest = 0;
  sum = 0;
  for (int r = 0; r < ranks; ++r) {
    const auto mine = sequence_positions(o["--tokens"], r, ranks, layout);
    model::AttentionShape shape;
    shape.batch = 1;
    shape.queries = static_cast<std::int64_t>(mine.size());
    shape.keys = static_cast<std::int64_t>(keys.size());
    shape.query_positions = mine.data(), shape.key_positions = keys.data();
    shape.mask = {!o.full, o["--window"]};
    const auto pairs = static_cast<double>(model::visible_pairs(shape));
    largest = std::max(largest, pairs), sum += pairs;
  }
  return largest / (sum / ranks);
}

int run(const Options& o, const Communicator& world) {
  const int ranks = world.size();
  const SequenceLayout layout = layout_for(!o.full, o["--window"]);
  const auto group = ranks > 1 ? make_mpi_group(world) : nullptr;
  SequenceShards shards = shard_sequence(o["--tokens"], layout, group.get());
  AttentionSchemeKind scheme = kSchemes.find(o.scheme)->second;
  if (scheme == AttentionSchemeKind::kHybrid) {
    const model::AttentionGeometry geometry{
        o["--heads"], o["--kv-heads"], o["--head-size"], {!o.full, o["--window"]}, 1.0f};
    const int inner = model::hybrid_inner(geometry, ranks, world.split_by_node().size());
    if (inner == 1) usage(fmt::format("no inner groups of {} ranks for hybrid", ranks));
    split_context(shards, world, inner);
  }
  Attention shared(o, scheme, std::move(shards));
  // Every rank has the whole, to compare its part; rank 0's is measured.
  Attention whole(o, scheme, shard_sequence(o["--tokens"], layout, nullptr));

  omp_set_num_threads(1);
  const std::int64_t before = shared.shards().bytes_sent();
  shared.run();
  const double mib = static_cast<double>(shared.shards().bytes_sent() - before) / 1048576;
  if (world.rank() == 0) omp_set_num_threads(ranks);
  whole.run();
  const auto [mine, norm] = shared.difference(whole);
  const double error = std::sqrt(world.all_reduce_sum(mine) / world.all_reduce_sum(norm));
  if (!(error <= 2e-6)) {
    if (world.rank() == 0)
      fmt::print(stderr, "bench_context: {} ranks differ from one by {:.2e}\n", ranks, error);
    return 1;
  }

  std::vector<double> together, alone, ratios, exposed, cpu_together, cpu_alone;
  for (std::int64_t i = 0; i < o["--repeats"]; ++i) {
    omp_set_num_threads(1);
    meet(world);
    const double waited = shared.shards().exposed_seconds(), begin = now(), cpu = cpu_now();
    shared.run();
    const double took = now() - begin;
    cpu_together.push_back(world.all_reduce_sum(cpu_now() - cpu));
    // A step lasts until the slowest is through; every rank's waiting counts.
    together.push_back(world.all_reduce_max(took));
    exposed.push_back(world.all_reduce_sum(shared.shards().exposed_seconds() - waited) / ranks /
                      together.back());
    meet(world);
    double seconds = 0, cpu_seconds = 0;
    if (world.rank() == 0) {
      omp_set_num_threads(ranks);
      const double start = now(), cpu_start = cpu_now();
      whole.run();
      seconds = now() - start, cpu_seconds = cpu_now() - cpu_start;
    }
    meet(world);
    alone.push_back(world.all_reduce_max(seconds));
    cpu_alone.push_back(world.all_reduce_max(cpu_seconds));
    ratios.push_back(together.back() / alone.back());
  }
  if (world.rank() != 0) return 0;

  double pairs = 0;
  const double chosen = balance(o, ranks, layout, pairs);
  const double flops = 14 * pairs * static_cast<double>(o["--heads"] * o["--head-size"]);
  const auto p90 = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[(values.size() * 9 - 1) / 10];
  };
  const std::string mask =
      fmt::format("{}{}", o.full ? "full" : "causal",
                  o["--window"] > 0 ? fmt::format(" window={}", o["--window"]) : "");
  const std::string what = fmt::format(
      "context fp32 tokens={} heads={} kv_heads={} head_size={} mask=\"{}\" pass=forward+backward "
      "GFLOP={:.1f}",
      o["--tokens"], o["--heads"], o["--kv-heads"], o["--head-size"], mask, 1e-9 * flops);
  const auto row = [&](const std::string& how, const std::vector<double>& seconds,
                       const std::vector<double>& cpu) {
    fmt::print("{} {} median_s={:.4f} p90_s={:.4f} cpu_s={:.4f} GFLOP/s={:.1f}", what, how,
               testing_support::median(seconds), p90(seconds), testing_support::median(cpu),
               1e-9 * flops / testing_support::median(seconds));
  };
  row(fmt::format("ranks=1 threads={}", ranks), alone, cpu_alone);
  const char* const name = layout == SequenceLayout::kZigzag ? "zigzag" : "contiguous";
  fmt::print("\n");
  row(fmt::format("ranks={} threads=1 scheme={} layout={}", ranks, o.scheme, name), together,
      cpu_together);
  fmt::print(" of_one_rank={:.3f} exposed={:.1f}% sent_MiB={:.2f} balance={:.2f} error={:.1e}\n",
             testing_support::median(ratios), 100 * testing_support::median(exposed), mib, chosen,
             error);
  double ignored = 0;
  for (const auto& [other, label] : {std::pair{SequenceLayout::kZigzag, "zigzag"},
                                     std::pair{SequenceLayout::kContiguous, "contiguous"}})
    fmt::print("balance tokens={} mask=\"{}\" ranks={} layout={} max/mean_pairs={:.4f}\n",
               o["--tokens"], mask, ranks, label, balance(o, ranks, other, ignored));
  if (launcher::available_cores() < ranks)
    fmt::print("note: {} threads share {} cores: times say little\n", ranks,
               launcher::available_cores());
  return 0;
}

}  // namespace
}  // namespace longspan

int main(int argc, char** argv) {
  const auto options = longspan::parse(argc, argv);
  longspan::MpiRuntime mpi;
  const auto world = longspan::Communicator::world();
  return static_cast<int>(world.all_reduce_max(std::int64_t{longspan::run(options, world)}));
}
