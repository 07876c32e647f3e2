/// Tokens exchanged for heads: the all-to-all of the schemes Ulysses (over the context group) and
/// hybrid (over its inner group). Read next: attention_ulysses.cpp, attention_hybrid.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/attention_blocks.hpp"

namespace longspan::model {

/// The query heads of one rank and the key/value heads they read.
struct HeadShare {
  std::int64_t first, count, kv_first, kv_count;
};
/// An even share of all heads; empty where there are more ranks than heads. Pure.
HeadShare head_share(const AttentionGeometry& geometry, int rank, int ranks);

/// One call of forward or backward: who holds which heads, and the exchanges between the two ways
/// to hold a sequence. Sequence after sequence, so that a batch computes one while others travel.
/// Collective over pass.shards.group: gather_*, send_back.
class HeadExchange {
 public:
  HeadExchange(const AttentionGeometry& geometry, Backend backend, const PassContext& pass);

  std::int64_t sequences() const { return sequences_; }
  std::int64_t length() const { return length_; }  ///< tokens of a sequence, with padding
  std::int64_t heads() const { return mine_.count; }
  std::int64_t kv_heads() const { return mine_.kv_count; }
  std::int64_t query_width() const { return query_width(mine_); }
  /// Queries, keys and values of the own heads.
  std::int64_t qkv_width() const { return qkv_width(mine_); }

  /// Everybody's tokens of one's own heads: on their way to `heads`, or from it.
  struct Transfer {
    Buffer<float> tokens;  ///< of all heads, for each sequence: rank by rank what it holds
    Buffer<float> heads;   ///< [B, P * T, own heads]
    std::vector<PendingPtr> pending;  // behind the buffers: it ends before they do
  };

  /// Queries, keys and values of all ranks' tokens. pending[b] brings sequence b.
  Transfer gather_qkv(View<const float> qkv) const;
  /// Rows of query width of all ranks' tokens, such as the gradient of the output.
  Transfer gather_queries(View<const float> rows_NHK) const;
  /// [B, H, T] numbers of the tokens here -> [B, own heads, P * T]. Returns when they are there.
  Buffer<float> gather_scalars(View<const float> numbers_BHT) const;

  /// Room for what is to travel back.
  Transfer make_return(bool with_keys_values) const;
  /// Sends what transfer.heads has of sequence b back to its tokens.
  void send_back(Transfer& transfer, bool with_keys_values, std::int64_t b) const;
  void receive_outputs(Transfer& transfer, View<float> output_NHK) const;
  /// Writes all of dqkv; a key/value head that several ranks had gets their sum, in rank order.
  void receive_gradients(Transfer& transfer, View<float> dqkv) const;

  /// Sequence b with the own heads; lse: [own heads, P * T], o: [P * T, own heads * K].
  void attend(std::int64_t b, const float* qkv, float* o, float* lse) const;
  /// Adds to dqkv, laid out like qkv.
  void attend_backward(std::int64_t b, const float* qkv, const float* dout, const float* lse,
                       const float* delta, float* dqkv) const;

 private:
  enum What { kQueries, kQkv };
  struct Columns {
    std::int64_t in_row, in_part, width;
  };
  /// Query heads that one kernel call serves: they read equally many to each key/value head.
  /// Indices within the rank's share.
  struct HeadRun {
    std::int64_t first, count, kv_first, kv_count;
  };

  static std::vector<HeadRun> head_runs(const HeadShare& share, std::int64_t group);
  std::int64_t query_width(const HeadShare& s) const { return s.count * geometry_.head_size; }
  std::int64_t qkv_width(const HeadShare& s) const {
    return (s.count + 2 * s.kv_count) * geometry_.head_size;
  }
  std::int64_t width_of(What what, const HeadShare& s) const {
    return what == kQkv ? qkv_width(s) : query_width(s);
  }
  std::int64_t total_width(What what) const;
  /// Queries, keys and values of a share: where they lie in a row of qkv and in the share's rows.
  std::vector<Columns> columns(const HeadShare& s) const;
  Buffer<float> whole(std::int64_t width) const;
  Transfer make(What what) const;
  std::vector<std::int64_t> token_counts(What what) const;
  std::vector<std::int64_t> head_counts(What what) const;
  View<float> tokens_view(const Transfer& transfer, What what, std::int64_t b) const;
  View<float> heads_view(const Transfer& transfer, What what, std::int64_t b) const;
  PendingPtr to_heads(const Transfer& transfer, What what, std::int64_t b) const;
  PendingPtr to_tokens(const Transfer& transfer, What what, std::int64_t b) const;
  /// Where a run's queries, keys and values lie in a row.
  std::array<std::int64_t, 3> offsets(const HeadRun& run) const;
  AttentionShape shape(const HeadRun& run, std::int64_t b) const;

  const AttentionGeometry& geometry_;
  Backend backend_;
  ProcessGroup& group_;
  std::int64_t sequences_, tokens_, length_;
  std::vector<HeadShare> shares_;  ///< of every rank
  HeadShare mine_;
  std::vector<HeadRun> runs_;
  const std::int32_t* positions_;  ///< [P * T], where kernels read them
  PositionRuns position_runs_;
  const std::int32_t* documents_;  ///< [B, P * T]; null: one a sequence
};

}  // namespace longspan::model
