#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "model/attention_ring.hpp"
#include "parallel/host_copy.hpp"

namespace longspan::model {
namespace {

/// Tokens whose positions count up one by one.
struct Run {
  std::int64_t row, position, count;
};

std::vector<Run> position_runs(const std::vector<std::int32_t>& positions) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] < 0) continue;
    const auto row = static_cast<std::int64_t>(i);
    if (!runs.empty() && runs.back().row + runs.back().count == row &&
        runs.back().position + runs.back().count == positions[i])
      ++runs.back().count;
    else
      runs.push_back({row, positions[i], 1});
  }
  return runs;
}

/// keys_in_window() on runs.
std::vector<RowRange> keys_seen(const AttentionMask& mask, const std::vector<Run>& query_runs,
                                const std::vector<Run>& key_runs) {
  std::vector<RowRange> seen;
  for (const Run& keys : key_runs)
    for (const Run& run : query_runs) {
      const std::int64_t last = run.position + run.count - 1;
      const std::int64_t from = std::max(keys.position, run.position - (mask.window - 1));
      const std::int64_t to =
          std::min(keys.position + keys.count - 1, last + (mask.causal ? 0 : mask.window - 1));
      if (from <= to) seen.push_back({keys.row + from - keys.position, to - from + 1});
    }
  std::sort(seen.begin(), seen.end(),
            [](const RowRange& a, const RowRange& b) { return a.first < b.first; });
  std::vector<RowRange> merged;
  for (const RowRange& range : seen) {
    if (merged.empty() || merged.back().first + merged.back().count < range.first) {
      merged.push_back(range);
      continue;
    }
    RowRange& before = merged.back();
    before.count = std::max(before.count, range.first + range.count - before.first);
  }
  return merged;
}

std::int64_t rows_in(const std::vector<RowRange>& ranges) {
  std::int64_t rows = 0;
  for (const RowRange& range : ranges) rows += range.count;
  return rows;
}

/// One exchange of a rank: with the rank `distance` behind it and the one as far before it.
struct Exchange {
  int to, from;
  std::vector<RowRange> outgoing, incoming;  ///< rows here that `to` sees; there, that we see
  std::int64_t sequences, outgoing_rows, incoming_rows;  ///< rows of one sequence
  Uploaded<std::int32_t> positions, documents;           ///< of the incoming rows
  PositionRuns runs;

  KeyTokens tokens() const { return {incoming_rows, positions.data(), documents.data(), runs}; }
};
struct Exchanges {
  std::vector<Exchange> all;
};

/// The same number on every rank, in the order of the distance: exchanges of several ranks cannot
/// wait for each other in a circle, and what two ranks send each other is received in the order in
/// which it was sent. A distance at which nobody sees anything does not appear; at the others a
/// rank may have nothing to send or receive.
std::vector<Exchange> exchanges(const AttentionMask& mask, const PassContext& pass,
                                Backend backend) {
  const SequenceShards& shards = pass.shards;
  const int ranks = shards.ranks(), me = shards.index;
  const auto positions = [&](int rank) -> const std::vector<std::int32_t>& {
    return shards.positions[static_cast<std::size_t>(rank)];
  };
  std::vector<std::vector<Run>> runs;
  for (int r = 0; r < ranks; ++r) runs.push_back(position_runs(positions(r)));
  const auto seen = [&](int queries, int keys) {
    return keys_seen(mask, runs[static_cast<std::size_t>(queries)],
                     runs[static_cast<std::size_t>(keys)]);
  };
  std::vector<Exchange> all;
  for (int distance = 1; distance < ranks; ++distance) {
    bool anybody = false;
    for (int r = 0; r < ranks && !anybody; ++r) anybody = !seen((r + distance) % ranks, r).empty();
    if (!anybody) continue;
    Exchange e;
    e.to = (me + distance) % ranks, e.from = (me + ranks - distance) % ranks;
    e.outgoing = seen(e.to, me), e.incoming = seen(me, e.from);
    e.sequences = pass.batch.sequences;
    e.outgoing_rows = rows_in(e.outgoing), e.incoming_rows = rows_in(e.incoming);
    const auto append = [&](const std::vector<std::int32_t>& from, std::int64_t first_row,
                            std::vector<std::int32_t>& to) {
      for (const RowRange& range : e.incoming) {
        const auto begin = from.begin() + first_row + range.first;
        to.insert(to.end(), begin, begin + range.count);
      }
    };
    std::vector<std::int32_t> incoming, documents;
    append(positions(e.from), 0, incoming);
    e.runs = runs_of(incoming);
    e.positions = {backend.device, backend.stream, std::move(incoming)};
    for (std::int64_t b = 0; !pass.documents.empty() && b < e.sequences; ++b)
      append(pass.documents[static_cast<std::size_t>(e.from)], b * pass.tokens(), documents);
    if (!documents.empty()) e.documents = {backend.device, backend.stream, std::move(documents)};
    all.push_back(std::move(e));
  }
  return all;
}

/// Worked out once a pass: all layers have the same mask.
const std::vector<Exchange>& exchanges_of(const AttentionMask& mask, const PassContext& pass,
                                          Backend backend) {
  const std::int64_t variant = mask.causal ? mask.window : -mask.window;
  return pass.own
      ->get<Exchanges>(
          variant,
          [&] { return std::make_unique<Exchanges>(Exchanges{exchanges(mask, pass, backend)}); })
      .all;
}

/// Calls visit(row here, row in the packed message, count) for the ranges of every sequence.
template <class Visit>
void each_outgoing(const Exchange& e, std::int64_t tokens, Visit&& visit) {
  std::int64_t packed = 0;
  for (std::int64_t b = 0; b < e.sequences; ++b)
    for (const RowRange& range : e.outgoing) {
      visit(b * tokens + range.first, packed, range.count);
      packed += range.count;
    }
}

/// Keys and values on their way.
struct Transfer {
  Buffer<float> outgoing, incoming;
  PendingPtr pending;  // behind the buffers: it ends before they do

  /// What has arrived.
  Buffer<float> wait() {
    pending->wait();
    outgoing.clear();
    return std::move(incoming);
  }
};

class Window {
 public:
  Window(const AttentionGeometry& geometry, Backend backend, View<const float> qkv,
         const PassContext& pass)
      : geometry_(geometry),
        backend_(backend),
        qkv_(qkv),
        pass_(pass),
        exchanges_(exchanges_of(geometry.mask, pass, backend)) {}

  std::size_t count() const { return exchanges_.size(); }
  const Exchange& operator[](std::size_t i) const { return exchanges_[i]; }
  /// Exchanges that bring this rank any keys.
  std::int64_t incoming_blocks() const {
    return std::count_if(exchanges_.begin(), exchanges_.end(),
                         [](const Exchange& e) { return e.incoming_rows > 0; });
  }
  std::int64_t width() const { return 2 * geometry_.kv_width(); }

  /// Posts the keys and values of exchange i, if there is one.
  std::optional<Transfer> post(std::size_t i) const {
    if (i >= count()) return std::nullopt;
    const Exchange& e = exchanges_[i];
    Transfer transfer;
    transfer.outgoing = rows(e.outgoing_rows);
    transfer.incoming = rows(e.incoming_rows);
    each_outgoing(e, pass_.tokens(), [&](std::int64_t row, std::int64_t packed, std::int64_t n) {
      copy_columns(backend_, n, width(), qkv_.row(row) + geometry_.query_width(), qkv_.cols(),
                   transfer.outgoing.view().row(packed), width());
    });
    transfer.pending =
        pass_.shards.group->send_receive(transfer.outgoing, e.to, transfer.incoming, e.from);
    return transfer;
  }
  /// Sends the gradients of what exchange i has brought home, and receives those of what it took.
  Transfer post_gradients(std::size_t i, Buffer<float> gradients) const {
    const Exchange& e = exchanges_[i];
    Transfer transfer;
    transfer.outgoing = std::move(gradients);
    transfer.incoming = rows(e.outgoing_rows);
    transfer.pending =
        pass_.shards.group->send_receive(transfer.outgoing, e.from, transfer.incoming, e.to);
    return transfer;
  }
  void add_gradients(std::size_t i, Transfer& transfer, View<float> dqkv) const {
    const Buffer<float> arrived = transfer.wait();
    each_outgoing(exchanges_[i], pass_.tokens(),
                  [&](std::int64_t row, std::int64_t packed, std::int64_t n) {
                    backend_.kernels.add_rows(n, width(), arrived.view().row(packed), width(),
                                              dqkv.row(row) + geometry_.query_width(), dqkv.cols(),
                                              backend_.stream);
                  });
  }
  /// [B * rows_a_sequence, 2 * G * K].
  Buffer<float> rows(std::int64_t rows_a_sequence) const {
    return Buffer<float>(backend_.device, pass_.batch.sequences * rows_a_sequence, width());
  }

 private:
  const AttentionGeometry& geometry_;
  Backend backend_;
  View<const float> qkv_;
  const PassContext& pass_;
  const std::vector<Exchange>& exchanges_;
};

}  // namespace

std::vector<RowRange> keys_in_window(const AttentionMask& mask,
                                     const std::vector<std::int32_t>& query_positions,
                                     const std::vector<std::int32_t>& key_positions) {
  return keys_seen(mask, position_runs(query_positions), position_runs(key_positions));
}

void window_ring_forward(const AttentionGeometry& geometry, Backend backend, View<const float> qkv,
                         AttentionSaved& saved, const PassContext& pass) {
  const Window window(geometry, backend, qkv, pass);
  BlockForward queries(geometry, backend, qkv, saved, pass, 1 + window.incoming_blocks());
  std::optional<Transfer> transfer = window.post(0);
  queries.attend(home_block(geometry, qkv), pass.shards.index);
  for (std::size_t i = 0; i < window.count(); ++i) {
    const Buffer<float> block = transfer->wait();
    transfer = window.post(i + 1);
    if (window[i].incoming_rows > 0)
      queries.attend(packed_block(geometry, block.data()), window[i].tokens());
  }
}

void window_ring_backward(const AttentionGeometry& geometry, Backend backend,
                          View<const float> dout_NHK, View<const float> qkv, View<const float> lse,
                          Buffer<float> delta_BHT, View<float> dqkv, const PassContext& pass) {
  const Window window(geometry, backend, qkv, pass);
  BlockBackward queries(geometry, backend, dout_NHK, qkv, lse, std::move(delta_BHT), dqkv, pass);
  std::optional<Transfer> transfer = window.post(0);
  queries.attend(home_block(geometry, qkv), pass.shards.index, dqkv.data() + geometry.query_width(),
                 dqkv.cols());
  // Gradients go straight home, one exchange behind the keys and values, and are added there in the
  // order of the exchanges.
  std::optional<Transfer> gradients;
  for (std::size_t i = 0; i < window.count(); ++i) {
    Buffer<float> block = transfer->wait();
    transfer = window.post(i + 1);
    Buffer<float> share = window.rows(window[i].incoming_rows);
    fill_zero(backend, share);
    if (window[i].incoming_rows > 0)
      queries.attend(packed_block(geometry, block.data()), window[i].tokens(), share.data(),
                     share.cols());
    block.clear();
    if (gradients) window.add_gradients(i - 1, *gradients, dqkv);
    gradients = window.post_gradients(i, std::move(share));
  }
  if (gradients) window.add_gradients(window.count() - 1, *gradients, dqkv);
}

}  // namespace longspan::model
