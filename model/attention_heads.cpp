#include "model/attention_heads.hpp"

#include <algorithm>
#include <memory>
#include <utility>

#include "parallel/host_copy.hpp"

namespace longspan::model {
namespace {

/// Of the tokens of rank 0, 1, ... one behind the other.
struct GroupPositions {
  PositionRuns runs;
  Uploaded<std::int32_t> all;
};
/// Likewise, sequence after sequence.
struct GroupDocuments {
  Uploaded<std::int32_t> all;
};

const GroupPositions& group_positions(const PassContext& pass, Backend backend) {
  return pass.constant->get<GroupPositions>(0, [&] {
    std::vector<std::int32_t> all;
    for (const auto& theirs : pass.shards.positions)
      all.insert(all.end(), theirs.begin(), theirs.end());
    const PositionRuns runs = runs_of(all);
    return std::make_unique<GroupPositions>(
        GroupPositions{runs, {backend.device, backend.stream, std::move(all)}});
  });
}

/// Null: one document per sequence.
const std::int32_t* group_documents(const PassContext& pass, Backend backend) {
  if (pass.documents.empty()) return nullptr;
  const auto& made = pass.own->get<GroupDocuments>(0, [&] {
    std::vector<std::int32_t> all;
    for (std::int64_t b = 0; b < pass.batch.sequences; ++b)
      for (const auto& theirs : pass.documents)
        all.insert(all.end(), theirs.begin() + b * pass.tokens(),
                   theirs.begin() + (b + 1) * pass.tokens());
    return std::make_unique<GroupDocuments>(
        GroupDocuments{{backend.device, backend.stream, std::move(all)}});
  });
  return made.all.data();
}

}  // namespace

HeadShare head_share(const AttentionGeometry& geometry, int rank, int ranks) {
  const std::int64_t group = geometry.heads / geometry.kv_heads;
  const std::int64_t first = part_begin(geometry.heads, rank, ranks);
  const std::int64_t count = part_begin(geometry.heads, rank + 1, ranks) - first;
  if (count == 0) return {first, 0, first / group, 0};
  const std::int64_t kv_first = first / group;
  return {first, count, kv_first, (first + count - 1) / group + 1 - kv_first};
}

/// An even share of the heads may begin and end inside a group: at most three runs, the rest of a
/// group, whole groups, and the beginning of one. No two read the same key/value head.
std::vector<HeadExchange::HeadRun> HeadExchange::head_runs(const HeadShare& share,
                                                           std::int64_t group) {
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

HeadExchange::HeadExchange(const AttentionGeometry& geometry, Backend backend,
                           const PassContext& pass)
    : geometry_(geometry),
      backend_(backend),
      group_(*pass.shards.group),
      sequences_(pass.batch.sequences),
      tokens_(pass.tokens()),
      length_(pass.tokens() * pass.shards.ranks()),
      positions_(group_positions(pass, backend).all.data()),
      documents_(group_documents(pass, backend)) {
  for (int r = 0; r < pass.shards.ranks(); ++r)
    shares_.push_back(head_share(geometry, r, pass.shards.ranks()));
  mine_ = shares_[static_cast<std::size_t>(pass.shards.index)];
  position_runs_ = group_positions(pass, backend).runs;
  runs_ = head_runs(mine_, geometry.heads / geometry.kv_heads);
}

HeadExchange::Transfer HeadExchange::gather_qkv(View<const float> qkv) const {
  Transfer transfer = make(kQkv);
  transfer.heads = whole(qkv_width());
  for (std::int64_t b = 0; b < sequences_; ++b) {
    float* to = transfer.tokens.data() + b * tokens_ * total_width(kQkv);
    for (const HeadShare& s : shares_) {
      const std::int64_t row = qkv_width(s);
      for (const auto& [from, at, width] : columns(s))
        copy_columns(backend_, tokens_, width, qkv.row(b * tokens_) + from, qkv.cols(), to + at,
                     row);
      to += tokens_ * row;
    }
    transfer.pending.push_back(to_heads(transfer, kQkv, b));
  }
  return transfer;
}

HeadExchange::Transfer HeadExchange::gather_queries(View<const float> rows_NHK) const {
  Transfer transfer = make(kQueries);
  transfer.heads = whole(query_width());
  for (std::int64_t b = 0; b < sequences_; ++b) {
    float* to = transfer.tokens.data() + b * tokens_ * total_width(kQueries);
    for (const HeadShare& s : shares_) {
      copy_columns(backend_, tokens_, query_width(s),
                   rows_NHK.row(b * tokens_) + s.first * geometry_.head_size, rows_NHK.cols(), to,
                   query_width(s));
      to += tokens_ * query_width(s);
    }
    transfer.pending.push_back(to_heads(transfer, kQueries, b));
  }
  return transfer;
}

Buffer<float> HeadExchange::gather_scalars(View<const float> numbers_BHT) const {
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

HeadExchange::Transfer HeadExchange::make_return(bool with_keys_values) const {
  Transfer transfer = make(with_keys_values ? kQkv : kQueries);
  transfer.heads = whole(with_keys_values ? qkv_width() : query_width());
  return transfer;
}

void HeadExchange::send_back(Transfer& transfer, bool with_keys_values, std::int64_t b) const {
  transfer.pending.push_back(to_tokens(transfer, with_keys_values ? kQkv : kQueries, b));
}

void HeadExchange::receive_outputs(Transfer& transfer, View<float> output_NHK) const {
  for (std::int64_t b = 0; b < sequences_; ++b) {
    transfer.pending[static_cast<std::size_t>(b)]->wait();
    const float* from = transfer.tokens.data() + b * tokens_ * total_width(kQueries);
    for (const HeadShare& s : shares_) {
      copy_columns(backend_, tokens_, query_width(s), from, query_width(s),
                   output_NHK.row(b * tokens_) + s.first * geometry_.head_size, output_NHK.cols());
      from += tokens_ * query_width(s);
    }
  }
}

void HeadExchange::receive_gradients(Transfer& transfer, View<float> dqkv) const {
  for (std::int64_t b = 0; b < sequences_; ++b) {
    transfer.pending[static_cast<std::size_t>(b)]->wait();
    const float* from = transfer.tokens.data() + b * tokens_ * total_width(kQkv);
    std::int64_t written = 0;  // key/value heads; shares follow each other, so these are the first
    for (const HeadShare& s : shares_) {
      const std::int64_t row = qkv_width(s), size = geometry_.head_size;
      const std::int64_t shared = std::max<std::int64_t>(0, written - s.kv_first) * size;
      for (const auto& [to, at, width] : columns(s)) {
        const std::int64_t added = to < geometry_.query_width() ? 0 : std::min(shared, width);
        if (added > 0)
          backend_.kernels.add_rows(tokens_, added, from + at, row, dqkv.row(b * tokens_) + to,
                                    dqkv.cols(), backend_.stream);
        copy_columns(backend_, tokens_, width - added, from + at + added, row,
                     dqkv.row(b * tokens_) + to + added, dqkv.cols());
      }
      written = std::max(written, s.kv_first + s.kv_count);
      from += tokens_ * row;
    }
  }
}

void HeadExchange::attend(std::int64_t b, const float* qkv, float* o, float* lse) const {
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

void HeadExchange::attend_backward(std::int64_t b, const float* qkv, const float* dout,
                                   const float* lse, const float* delta, float* dqkv) const {
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

std::int64_t HeadExchange::total_width(What what) const {
  std::int64_t total = 0;
  for (const HeadShare& s : shares_) total += width_of(what, s);
  return total;
}

std::vector<HeadExchange::Columns> HeadExchange::columns(const HeadShare& s) const {
  const std::int64_t size = geometry_.head_size, kv = s.kv_count * size;
  const std::int64_t keys = geometry_.query_width() + s.kv_first * size;
  return {{s.first * size, 0, s.count * size},
          {keys, s.count * size, kv},
          {keys + geometry_.kv_width(), s.count * size + kv, kv}};
}

Buffer<float> HeadExchange::whole(std::int64_t width) const {
  return Buffer<float>(backend_.device, sequences_ * length_, width);
}

HeadExchange::Transfer HeadExchange::make(What what) const {
  Transfer transfer;
  transfer.tokens = Buffer<float>(backend_.device, sequences_ * tokens_, total_width(what));
  return transfer;
}

std::vector<std::int64_t> HeadExchange::token_counts(What what) const {
  std::vector<std::int64_t> counts;
  for (const HeadShare& s : shares_) counts.push_back(tokens_ * width_of(what, s));
  return counts;
}

std::vector<std::int64_t> HeadExchange::head_counts(What what) const {
  return std::vector<std::int64_t>(shares_.size(), tokens_ * width_of(what, mine_));
}

View<float> HeadExchange::tokens_view(const Transfer& transfer, What what, std::int64_t b) const {
  const std::int64_t size = tokens_ * total_width(what);
  return View<float>(transfer.tokens.data() + b * size, size);
}

View<float> HeadExchange::heads_view(const Transfer& transfer, What what, std::int64_t b) const {
  const std::int64_t size = length_ * width_of(what, mine_);
  return View<float>(transfer.heads.data() + b * size, size);
}

PendingPtr HeadExchange::to_heads(const Transfer& transfer, What what, std::int64_t b) const {
  return group_.all_to_all(tokens_view(transfer, what, b), token_counts(what),
                           heads_view(transfer, what, b), head_counts(what));
}

PendingPtr HeadExchange::to_tokens(const Transfer& transfer, What what, std::int64_t b) const {
  return group_.all_to_all(heads_view(transfer, what, b), head_counts(what),
                           tokens_view(transfer, what, b), token_counts(what));
}

std::array<std::int64_t, 3> HeadExchange::offsets(const HeadRun& run) const {
  const std::int64_t size = geometry_.head_size, keys = mine_.count + run.kv_first;
  return {run.first * size, keys * size, (keys + mine_.kv_count) * size};
}

AttentionShape HeadExchange::shape(const HeadRun& run, std::int64_t b) const {
  AttentionShape shape;
  shape.batch = 1, shape.queries = shape.keys = length_;
  shape.heads = run.count, shape.kv_heads = run.kv_count;
  shape.head_size = geometry_.head_size;
  shape.query_positions = shape.key_positions = positions_;
  if (documents_ != nullptr) shape.query_documents = shape.key_documents = documents_ + b * length_;
  shape.mask = geometry_.mask;
  shape.scale = geometry_.scale;
  shape.bf16_operands = geometry_.bf16;
  shape.query_runs = shape.key_runs = position_runs_;
  return shape;
}

}  // namespace longspan::model
