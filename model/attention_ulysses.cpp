// What is sent, in general: with h_r query and g_r key/value heads on rank r, me sends
//   forward   T B K (sum over r != me of (h_r + 2 g_r)  +  (P-1) h_me)        tokens out, output
//   back backward  T B K (sum over r != me of h_r  +  (P-1) (h_me + 2 g_me))       gradients
//             + T B (sum over r != me of h_r)                                 rowsums, delta
//             + T B K (sum over r != me of (h_r + 2 g_r))                     unless
//             saved.exchanged
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "model/attention_blocks.hpp"

namespace longspan::model {
namespace {

/// The query heads of one rank and the key/value heads they read.
struct HeadShare {
  std::int64_t first, count, kv_first, kv_count;
};

/// Query heads that one kernel call serves: they read equally many to each key/value head. Indices
/// within the rank's share.
struct HeadRun {
  std::int64_t first, count, kv_first, kv_count;
};

HeadShare share_of(const AttentionGeometry& geometry, int rank, int ranks) {
  const std::int64_t group = geometry.heads / geometry.kv_heads;
  const std::int64_t first = part_begin(geometry.heads, rank, ranks);
  const std::int64_t count = part_begin(geometry.heads, rank + 1, ranks) - first;
  if (count == 0) return {first, 0, first / group, 0};
  const std::int64_t kv_first = first / group;
  return {first, count, kv_first, (first + count - 1) / group + 1 - kv_first};
}

/// An even share of the heads may begin and end inside a group: at most three runs, the rest of a
/// group, whole groups, and the beginning of one. No two read the same key/value head.
std::vector<HeadRun> runs_of(const HeadShare& share, std::int64_t group) {
  std::vector<HeadRun> runs;
  for (std::int64_t head = 0; head < share.count;) {
    const std::int64_t at = share.first + head, left = share.count - head;
    const std::int64_t whole = at % group == 0 ? left / group * group : 0;
    const std::int64_t count = whole > 0 ? whole : std::min(left, group - at % group);
    runs.push_back({head, count, at / group - share.kv_first, whole > 0 ? whole / group : 1});
    head += count;
  }
  return runs;
}

/// One call of forward or backward: who holds which heads, and the exchanges between the two ways
/// to hold a sequence. Sequence after sequence, so that a batch computes one while others travel.
class UlyssesPass {
 public:
  UlyssesPass(const AttentionGeometry& geometry, Backend backend, const PassContext& pass)
      : geometry_(geometry),
        backend_(backend),
        group_(*pass.shards.group),
        sequences_(pass.batch.sequences),
        tokens_(pass.tokens()),
        length_(pass.tokens() * pass.shards.ranks()) {
    for (int r = 0; r < pass.shards.ranks(); ++r)
      shares_.push_back(share_of(geometry, r, pass.shards.ranks()));
    mine_ = shares_[static_cast<std::size_t>(pass.shards.index)];
    runs_ = runs_of(mine_, geometry.heads / geometry.kv_heads);
    for (const auto& theirs : pass.shards.positions)
      positions_.insert(positions_.end(), theirs.begin(), theirs.end());
    for (std::int64_t b = 0; b < sequences_; ++b)
      for (const auto& theirs : pass.documents)
        documents_.insert(documents_.end(), theirs.begin() + b * tokens_,
                          theirs.begin() + (b + 1) * tokens_);
  }

  std::int64_t sequences() const { return sequences_; }
  std::int64_t length() const { return length_; }  ///< tokens of a sequence, with padding
  std::int64_t heads() const { return mine_.count; }
  std::int64_t query_width() const { return query_width(mine_); }
  /// Queries, keys and values of the own heads.
  std::int64_t qkv_width() const { return qkv_width(mine_); }

  /// Everybody's tokens of one's own heads: on their way to `heads`, or from it.
  struct Exchange {
    Buffer<float> tokens;  ///< of all heads, for each sequence: rank by rank what it holds
    Buffer<float> heads;   ///< [B, P * T, own heads]
    std::vector<PendingPtr> pending;  // behind the buffers: it ends before they do
  };

  /// Queries, keys and values of all ranks' tokens. pending[b] brings sequence b.
  Exchange gather_qkv(View<const float> qkv) const {
    Exchange exchange = make(kQkv);
    exchange.heads = whole(qkv_width());
    for (std::int64_t b = 0; b < sequences_; ++b) {
      float* to = exchange.tokens.data() + b * tokens_ * total_width(kQkv);
      for (const HeadShare& s : shares_) {
        const std::int64_t row = qkv_width(s);
        for (const auto& [from, at, width] : columns(s))
          copy_columns(backend_, tokens_, width, qkv.row(b * tokens_) + from, qkv.cols(), to + at,
                       row);
        to += tokens_ * row;
      }
      exchange.pending.push_back(to_heads(exchange, kQkv, b));
    }
    return exchange;
  }

  /// Rows of query width of all ranks' tokens, such as the gradient of the output.
  Exchange gather_queries(View<const float> rows_NHK) const {
    Exchange exchange = make(kQueries);
    exchange.heads = whole(query_width());
    for (std::int64_t b = 0; b < sequences_; ++b) {
      float* to = exchange.tokens.data() + b * tokens_ * total_width(kQueries);
      for (const HeadShare& s : shares_) {
        copy_columns(backend_, tokens_, query_width(s),
                     rows_NHK.row(b * tokens_) + s.first * geometry_.head_size, rows_NHK.cols(), to,
                     query_width(s));
        to += tokens_ * query_width(s);
      }
      exchange.pending.push_back(to_heads(exchange, kQueries, b));
    }
    return exchange;
  }

  /// [B, H, T] numbers of the tokens here -> [B, own heads, P * T].
  Buffer<float> gather_scalars(View<const float> numbers_BHT) const {
    Buffer<float> arrived = whole(heads()), result = whole(heads());
    std::vector<std::int64_t> out, in;
    for (const HeadShare& s : shares_) {
      out.push_back(s.count * tokens_);
      in.push_back(heads() * tokens_);
    }
    for (std::int64_t b = 0; b < sequences_; ++b) {
      const std::int64_t size = heads() * length_;
      const View<float> parts(arrived.data() + b * size, size);
      group_
          .all_to_all(numbers_BHT.slice(b * geometry_.heads * tokens_, geometry_.heads * tokens_),
                      out, parts, in)
          ->wait();
      for (std::size_t r = 0; r < shares_.size(); ++r) {
        const auto source = static_cast<std::int64_t>(r);
        copy_columns(backend_, heads(), tokens_, parts.data() + source * heads() * tokens_, tokens_,
                     result.data() + b * size + source * tokens_, length_);
      }
    }
    return result;
  }

  Exchange make_return(bool with_keys_values) const {
    Exchange exchange = make(with_keys_values ? kQkv : kQueries);
    exchange.heads = whole(with_keys_values ? qkv_width() : query_width());
    return exchange;
  }
  /// Sends what exchange.heads has of sequence b back to its tokens.
  void send_back(Exchange& exchange, bool with_keys_values, std::int64_t b) const {
    exchange.pending.push_back(to_tokens(exchange, with_keys_values ? kQkv : kQueries, b));
  }
  void receive_outputs(Exchange& exchange, View<float> output_NHK) const {
    for (std::int64_t b = 0; b < sequences_; ++b) {
      exchange.pending[static_cast<std::size_t>(b)]->wait();
      const float* from = exchange.tokens.data() + b * tokens_ * total_width(kQueries);
      for (const HeadShare& s : shares_) {
        copy_columns(backend_, tokens_, query_width(s), from, query_width(s),
                     output_NHK.row(b * tokens_) + s.first * geometry_.head_size,
                     output_NHK.cols());
        from += tokens_ * query_width(s);
      }
    }
  }
  /// Writes all of dqkv; a key/value head that several ranks had gets their sum, in rank order.
  void receive_gradients(Exchange& exchange, View<float> dqkv) const {
    for (std::int64_t b = 0; b < sequences_; ++b) {
      exchange.pending[static_cast<std::size_t>(b)]->wait();
      const float* from = exchange.tokens.data() + b * tokens_ * total_width(kQkv);
      std::int64_t written =
          0;  // key/value heads; shares follow each other, so these are the first
      for (const HeadShare& s : shares_) {
        const std::int64_t row = qkv_width(s), size = geometry_.head_size;
        const std::int64_t shared = std::max<std::int64_t>(0, written - s.kv_first) * size;
        for (const auto& [to, at, width] : columns(s)) {
          const std::int64_t added = to < geometry_.query_width() ? 0 : std::min(shared, width);
          for (std::int64_t t = 0; added > 0 && t < tokens_; ++t)
            backend_.kernels.add(added, from + at + t * row, dqkv.row(b * tokens_ + t) + to,
                                 backend_.stream);
          copy_columns(backend_, tokens_, width - added, from + at + added, row,
                       dqkv.row(b * tokens_) + to + added, dqkv.cols());
        }
        written = std::max(written, s.kv_first + s.kv_count);
        from += tokens_ * row;
      }
    }
  }

  /// Sequence b with the own heads; lse: [own heads, P * T], o: [P * T, own heads * K].
  void attend(std::int64_t b, const float* qkv, float* o, float* lse) const {
    for (const HeadRun& run : runs_) {
      const auto [q, k, v] = offsets(run);
      AttentionForwardArgs args;
      args.shape = shape(run, b);
      args.q = qkv + q, args.k = qkv + k, args.v = qkv + v;
      args.q_row = args.kv_row = qkv_width();
      args.o = o + q, args.o_row = query_width();
      args.lse = lse + run.first * length_;
      backend_.kernels.attention_forward(args, backend_.stream);
    }
  }
  /// Adds to dqkv, laid out like qkv.
  void attend_backward(std::int64_t b, const float* qkv, const float* dout, const float* lse,
                       const float* delta, float* dqkv) const {
    for (const HeadRun& run : runs_) {
      const auto [q, k, v] = offsets(run);
      AttentionBackwardArgs args;
      args.shape = shape(run, b);
      args.q = qkv + q, args.k = qkv + k, args.v = qkv + v;
      args.dq = dqkv + q, args.dk = dqkv + k, args.dv = dqkv + v;
      args.q_row = args.kv_row = args.dq_row = args.dkv_row = qkv_width();
      args.dout = dout + q, args.dout_row = query_width();
      args.lse = lse + run.first * length_, args.delta = delta + run.first * length_;
      backend_.kernels.attention_backward(args, backend_.stream);
    }
  }

 private:
  enum What { kQueries, kQkv };
  struct Columns {
    std::int64_t in_row, in_part, width;
  };

  std::int64_t query_width(const HeadShare& s) const { return s.count * geometry_.head_size; }
  std::int64_t qkv_width(const HeadShare& s) const {
    return (s.count + 2 * s.kv_count) * geometry_.head_size;
  }
  std::int64_t width_of(What what, const HeadShare& s) const {
    return what == kQkv ? qkv_width(s) : query_width(s);
  }
  std::int64_t total_width(What what) const {
    std::int64_t total = 0;
    for (const HeadShare& s : shares_) total += width_of(what, s);
    return total;
  }
  /// Queries, keys and values of a share: where they lie in a row of qkv and in the share's rows.
  std::vector<Columns> columns(const HeadShare& s) const {
    const std::int64_t size = geometry_.head_size, kv = s.kv_count * size;
    const std::int64_t keys = geometry_.query_width() + s.kv_first * size;
    return {{s.first * size, 0, s.count * size},
            {keys, s.count * size, kv},
            {keys + geometry_.kv_width(), s.count * size + kv, kv}};
  }
  Buffer<float> whole(std::int64_t width) const {
    return Buffer<float>(backend_.device, sequences_ * length_, width);
  }
  Exchange make(What what) const {
    Exchange exchange;
    exchange.tokens = Buffer<float>(backend_.device, sequences_ * tokens_, total_width(what));
    return exchange;
  }

  std::vector<std::int64_t> token_counts(What what) const {
    std::vector<std::int64_t> counts;
    for (const HeadShare& s : shares_) counts.push_back(tokens_ * width_of(what, s));
    return counts;
  }
  std::vector<std::int64_t> head_counts(What what) const {
    return std::vector<std::int64_t>(shares_.size(), tokens_ * width_of(what, mine_));
  }
  View<float> tokens_view(const Exchange& exchange, What what, std::int64_t b) const {
    const std::int64_t size = tokens_ * total_width(what);
    return View<float>(exchange.tokens.data() + b * size, size);
  }
  View<float> heads_view(const Exchange& exchange, What what, std::int64_t b) const {
    const std::int64_t size = length_ * width_of(what, mine_);
    return View<float>(exchange.heads.data() + b * size, size);
  }
  PendingPtr to_heads(const Exchange& exchange, What what, std::int64_t b) const {
    return group_.all_to_all(tokens_view(exchange, what, b), token_counts(what),
                             heads_view(exchange, what, b), head_counts(what));
  }
  PendingPtr to_tokens(const Exchange& exchange, What what, std::int64_t b) const {
    return group_.all_to_all(heads_view(exchange, what, b), head_counts(what),
                             tokens_view(exchange, what, b), token_counts(what));
  }

  /// Where a run's queries, keys and values lie in a row.
  std::array<std::int64_t, 3> offsets(const HeadRun& run) const {
    const std::int64_t size = geometry_.head_size, keys = mine_.count + run.kv_first;
    return {run.first * size, keys * size, (keys + mine_.kv_count) * size};
  }
  AttentionShape shape(const HeadRun& run, std::int64_t b) const {
    AttentionShape shape;
    shape.batch = 1, shape.queries = shape.keys = length_;
    shape.heads = run.count, shape.kv_heads = run.kv_count;
    shape.head_size = geometry_.head_size;
    shape.query_positions = shape.key_positions = positions_.data();
    if (!documents_.empty())
      shape.query_documents = shape.key_documents = documents_.data() + b * length_;
    shape.mask = geometry_.mask;
    shape.scale = geometry_.scale;
    return shape;
  }

  const AttentionGeometry& geometry_;
  Backend backend_;
  ProcessGroup& group_;
  std::int64_t sequences_, tokens_, length_;
  std::vector<HeadShare> shares_;  ///< of every rank
  HeadShare mine_;
  std::vector<HeadRun> runs_;
  std::vector<std::int32_t> positions_;  ///< [P * T]
  std::vector<std::int32_t> documents_;  ///< [B, P * T]; empty: one a sequence
};

class UlyssesAttention : public AttentionScheme {
 public:
  UlyssesAttention(const AttentionGeometry& geometry, Backend backend)
      : geometry_(geometry), backend_(backend) {}

  void forward(View<const float> qkv, AttentionSaved& saved,
               const PassContext& pass) const override {
    const UlyssesPass heads(geometry_, backend_, pass);
    const std::int64_t length = heads.length();
    UlyssesPass::Exchange inputs = heads.gather_qkv(qkv);
    UlyssesPass::Exchange outputs = heads.make_return(false);
    saved.lse = Buffer<float>(backend_.device, heads.sequences() * heads.heads(), length);
    for (std::int64_t b = 0; b < heads.sequences(); ++b) {
      inputs.pending[static_cast<std::size_t>(b)]->wait();
      heads.attend(b, inputs.heads.data() + b * length * heads.qkv_width(),
                   outputs.heads.data() + b * length * heads.query_width(),
                   saved.lse.data() + b * length * heads.heads());
      heads.send_back(outputs, false, b);
    }
    inputs.tokens.clear();
    saved.exchanged.emplace(std::move(inputs.heads));
    heads.receive_outputs(outputs, saved.output_NHK);
  }

  void backward(View<const float> dout_NHK, View<const float> qkv, const AttentionSaved& saved,
                View<float> dqkv, const PassContext& pass) const override {
    const UlyssesPass heads(geometry_, backend_, pass);
    const std::int64_t length = heads.length(), size = length * heads.qkv_width();
    // The rowsums first: they are small, and nothing can start without them.
    const Buffer<float> delta =
        heads.gather_scalars(attention_delta(geometry_, backend_, dout_NHK, saved, pass));
    UlyssesPass::Exchange inputs, douts = heads.gather_queries(dout_NHK);
    if (!saved.exchanged) inputs = heads.gather_qkv(qkv);
    const float* qkv_heads = saved.exchanged ? saved.exchanged->data() : inputs.heads.data();
    UlyssesPass::Exchange gradients = heads.make_return(true);
    fill_zero(backend_, gradients.heads);
    for (std::int64_t b = 0; b < heads.sequences(); ++b) {
      const auto at = static_cast<std::size_t>(b);
      douts.pending[at]->wait();
      if (!saved.exchanged) inputs.pending[at]->wait();
      const std::int64_t scalars = b * length * heads.heads();
      heads.attend_backward(
          b, qkv_heads + b * size, douts.heads.data() + b * length * heads.query_width(),
          saved.lse.data() + scalars, delta.data() + scalars, gradients.heads.data() + b * size);
      heads.send_back(gradients, true, b);
    }
    heads.receive_gradients(gradients, dqkv);
  }

 private:
  AttentionGeometry geometry_;
  Backend backend_;
};

}  // namespace

std::unique_ptr<AttentionScheme> make_ulysses_attention(const AttentionGeometry& geometry,
                                                        Backend backend) {
  return std::make_unique<UlyssesAttention>(geometry, backend);
}

}  // namespace longspan::model
