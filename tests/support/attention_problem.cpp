#include "support/attention_problem.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "model/kernels/cpu/attention.hpp"
#include "parallel/random.hpp"

namespace longspan::testing_support {
namespace {

using model::AttentionShape;
using Floats = std::vector<float>;
using Ints = std::vector<std::int32_t>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Floats random_floats(std::int64_t count, std::uint64_t key, float scale = 1.0f) {
  Floats x(count);
  for (std::int64_t i = 0; i < count; ++i) x[i] = scale * normal_at(key, i);
  return x;
}

/// A [batch, tokens, width] tensor inside a larger buffer of NaN: rows and sequences lie apart.
struct Strided {
  std::int64_t batch, tokens, width, row, batch_stride;
  Floats data;
  Strided(std::int64_t batch, std::int64_t tokens, std::int64_t width, std::int64_t gap)
      : batch(batch),
        tokens(tokens),
        width(width),
        row(width + gap),
        batch_stride(tokens * row + 3 * gap),
        data(batch * batch_stride, kNan) {}
  Strided& fill(const Floats& from) {
    for (std::int64_t i = 0; i < batch * tokens * width; ++i) data[at(i)] = from[i];
    return *this;
  }
  Strided& fill(float value) { return fill(Floats(batch * tokens * width, value)); }
  Floats contiguous() const {
    Floats out(batch * tokens * width);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = data[at(i)];
    return out;
  }
  /// Nothing was written between the rows.
  bool gaps_are_untouched() const {
    std::int64_t numbers = 0;
    for (float x : data) numbers += !std::isnan(x);
    return numbers == batch * tokens * width;
  }

 private:
  std::size_t at(std::int64_t i) const {
    return i / (tokens * width) * batch_stride + i / width % tokens * row + i % width;
  }
};

}  // namespace

Ints counting(std::int64_t count, std::int32_t from) {
  Ints x(count);
  std::iota(x.begin(), x.end(), from);
  return x;
}

AttentionProblem::AttentionProblem(std::int64_t batch, std::int64_t queries, std::int64_t keys,
                                   std::int64_t heads, std::int64_t kv_heads,
                                   std::int64_t head_size, model::AttentionMask mask) {
  shape = {.batch = batch,
           .queries = queries,
           .keys = keys,
           .heads = heads,
           .kv_heads = kv_heads,
           .head_size = head_size,
           .mask = mask,
           .scale = 1.0f / std::sqrt(static_cast<float>(head_size))};
  query_positions =
      counting(queries, static_cast<std::int32_t>(std::max<std::int64_t>(0, keys - queries)));
  key_positions = counting(keys);
  q = random_floats(batch * queries * heads * head_size, 1, 1.5f);
  k = random_floats(batch * keys * kv_heads * head_size, 2, 1.5f);
  v = random_floats(batch * keys * kv_heads * head_size, 3);
  dout = random_floats(batch * queries * heads * head_size, 4);
}

AttentionProblem& AttentionProblem::with_documents() {
  query_documents.clear();
  key_documents.clear();
  const auto document = [](std::int64_t b, std::int32_t position) {
    return position < 0 ? 0
                        : 7 + static_cast<std::int32_t>(b) +
                              (position + 11 * static_cast<std::int32_t>(b)) / 77;
  };
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int32_t position : query_positions) query_documents.push_back(document(b, position));
    for (std::int32_t position : key_positions) key_documents.push_back(document(b, position));
  }
  return *this;
}

AttentionProblem& AttentionProblem::rounded_to_bf16() {
  shape.bf16_operands = true;
  for (Floats* x : {&q, &k, &v, &dout})
    for (float& number : *x) {
      const auto bits = std::bit_cast<std::uint32_t>(number);
      number = std::bit_cast<float>((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
    }
  return *this;
}

const AttentionShape& AttentionProblem::bind() {
  shape.query_positions = query_positions.data();
  shape.key_positions = key_positions.data();
  shape.query_documents = query_documents.empty() ? nullptr : query_documents.data();
  shape.key_documents = key_documents.empty() ? nullptr : key_documents.data();
  return shape;
}

AttentionOutputs AttentionProblem::reference() {
  const auto wide = [](const Floats& x) { return std::vector<double>(x.begin(), x.end()); };
  return attention_reference(bind(), {wide(q), wide(k), wide(v), wide(dout)});
}

AttentionProblem AttentionProblem::slice(const Ints& queries, const Ints& keys) const {
  const AttentionShape& from = shape;
  AttentionProblem part(from.batch, static_cast<std::int64_t>(queries.size()),
                        static_cast<std::int64_t>(keys.size()), from.heads, from.kv_heads,
                        from.head_size, from.mask);
  const auto rows = [&](const Floats& x, std::int64_t tokens, std::int64_t heads,
                        const Ints& taken) {
    Floats out;
    for (std::int64_t b = 0; b < from.batch; ++b)
      for (std::int32_t token : taken) {
        const auto row = x.begin() + (b * tokens + token) * heads * from.head_size;
        out.insert(out.end(), row, row + heads * from.head_size);
      }
    return out;
  };
  part.q = rows(q, from.queries, from.heads, queries);
  part.dout = rows(dout, from.queries, from.heads, queries);
  part.k = rows(k, from.keys, from.kv_heads, keys);
  part.v = rows(v, from.keys, from.kv_heads, keys);
  for (std::size_t i = 0; i < queries.size(); ++i)
    part.query_positions[i] = query_positions[queries[i]];
  for (std::size_t j = 0; j < keys.size(); ++j) part.key_positions[j] = key_positions[keys[j]];
  if (!query_documents.empty())
    part.with_documents();  // documents are a function of the position here
  return part;
}

void AttentionRunner::forward(const model::AttentionForwardArgs& args) {
  model::cpu::attention_forward(args);
}
void AttentionRunner::delta(const model::AttentionDeltaArgs& args) {
  model::cpu::attention_delta(args);
}
void AttentionRunner::backward(const model::AttentionBackwardArgs& args) {
  model::cpu::attention_backward(args);
}
AttentionRunner& cpu_attention() {
  static AttentionRunner runner;
  return runner;
}

AttentionForward attention_forward(AttentionProblem& problem, std::int64_t gap,
                                   const AttentionForward* merged, bool more,
                                   AttentionRunner& runner) {
  const AttentionShape& shape = problem.bind();
  const std::int64_t width = shape.heads * shape.head_size,
                     kv_width = shape.kv_heads * shape.head_size;
  const auto q = Strided(shape.batch, shape.queries, width, gap).fill(problem.q);
  const auto k = Strided(shape.batch, shape.keys, kv_width, gap).fill(problem.k);
  const auto v = Strided(shape.batch, shape.keys, kv_width, gap).fill(problem.v);
  Strided o(shape.batch, shape.queries, width, 2 * gap);
  const Floats unset(shape.batch * shape.heads * shape.queries, kNan);
  AttentionForward result{{}, unset, unset};
  if (merged) {
    o.fill(merged->o);
    result.lse = merged->lse, result.sum = merged->sum;
  }
  runner.forward({.shape = shape,
                  .q = q.data.data(),
                  .k = k.data.data(),
                  .v = v.data.data(),
                  .q_row = q.row,
                  .q_batch = q.batch_stride,
                  .kv_row = k.row,
                  .kv_batch = k.batch_stride,
                  .o = o.data.data(),
                  .o_row = o.row,
                  .o_batch = o.batch_stride,
                  .lse = result.lse.data(),
                  .sum = merged || more ? result.sum.data() : nullptr,
                  .merge = merged != nullptr,
                  .more = more});
  result.o = o.contiguous();
  result.gaps_are_untouched = gap == 0 || o.gaps_are_untouched();
  return result;
}

AttentionGradients attention_backward(AttentionProblem& problem, const AttentionForward& saved,
                                      std::int64_t gap, float start, AttentionRunner& runner) {
  const AttentionShape& shape = problem.bind();
  const std::int64_t width = shape.heads * shape.head_size,
                     kv_width = shape.kv_heads * shape.head_size;
  const auto q = Strided(shape.batch, shape.queries, width, gap).fill(problem.q);
  const auto k = Strided(shape.batch, shape.keys, kv_width, gap).fill(problem.k);
  const auto v = Strided(shape.batch, shape.keys, kv_width, gap).fill(problem.v);
  const auto o = Strided(shape.batch, shape.queries, width, gap).fill(saved.o);
  const auto dout = Strided(shape.batch, shape.queries, width, 3 * gap).fill(problem.dout);
  auto dq = Strided(shape.batch, shape.queries, width, 2 * gap).fill(start);
  auto dk = Strided(shape.batch, shape.keys, kv_width, 5 * gap).fill(start);
  auto dv = Strided(shape.batch, shape.keys, kv_width, 5 * gap).fill(start);
  Floats delta(shape.batch * shape.heads * shape.queries, kNan);
  runner.delta({.batch = shape.batch,
                .queries = shape.queries,
                .heads = shape.heads,
                .head_size = shape.head_size,
                .o = o.data.data(),
                .o_row = o.row,
                .o_batch = o.batch_stride,
                .dout = dout.data.data(),
                .dout_row = dout.row,
                .dout_batch = dout.batch_stride,
                .delta = delta.data()});
  runner.backward({.shape = shape,
                   .q = q.data.data(),
                   .k = k.data.data(),
                   .v = v.data.data(),
                   .q_row = q.row,
                   .q_batch = q.batch_stride,
                   .kv_row = k.row,
                   .kv_batch = k.batch_stride,
                   .dout = dout.data.data(),
                   .dout_row = dout.row,
                   .dout_batch = dout.batch_stride,
                   .lse = saved.lse.data(),
                   .delta = delta.data(),
                   .dq = dq.data.data(),
                   .dq_row = dq.row,
                   .dq_batch = dq.batch_stride,
                   .dk = dk.data.data(),
                   .dv = dv.data.data(),
                   .dkv_row = dk.row,
                   .dkv_batch = dk.batch_stride});
  const bool untouched =
      gap == 0 || (dq.gaps_are_untouched() && dk.gaps_are_untouched() && dv.gaps_are_untouched());
  return {dq.contiguous(), dk.contiguous(), dv.contiguous(), untouched};
}

}  // namespace longspan::testing_support
