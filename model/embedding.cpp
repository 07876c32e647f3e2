#include "model/embedding.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "model/tensor_rows.hpp"
#include "parallel/host_copy.hpp"
#include "parallel/random.hpp"

namespace longspan::model {
namespace {

struct OwnIds {
  Uploaded<std::int32_t> rows;
};
struct Readable {
  Uploaded<std::int32_t> tokens;
};
struct ReadableRows {
  Uploaded<std::int32_t> rows;
};

/// Positions with padding mapped to 0: its gradient is zero, but it must not read outside the
/// table. For kernels.
const std::int32_t* readable(const PassContext& pass, Backend backend) {
  const auto& made = pass.constant->get<Readable>(0, [&] {
    std::vector<std::int32_t> positions(pass.shards.mine());
    for (auto& p : positions) p = std::max(p, 0);
    return std::make_unique<Readable>(
        Readable{{backend.device, backend.stream, std::move(positions)}});
  });
  return made.tokens.data();
}

/// The same of every own row.
const std::int32_t* readable_rows(const PassContext& pass, Backend backend) {
  const auto& made = pass.own->get<ReadableRows>(0, [&] {
    std::vector<std::int32_t> rows;
    for (std::int64_t row = 0; row < pass.own_rows(); ++row)
      rows.push_back(std::max(pass.own_positions()[row % pass.own_tokens()], 0));
    return std::make_unique<ReadableRows>(
        ReadableRows{{backend.device, backend.stream, std::move(rows)}});
  });
  return made.rows.data();
}

}  // namespace

ParameterStore::Id add_vocabulary_matrix(ParameterStore& store, const std::string& name,
                                         const ModelConfig& config, const TensorShards& tensor) {
  const DimPart rows = tensor.part_of(config.vocabulary);
  Parameter matrix;
  matrix.name = name;
  matrix.shape = {rows.count, config.width};
  matrix.global_shape = {rows.total, config.width};
  matrix.block_offset = {rows.begin, 0};
  matrix.initial = {0.02f, 0.0f};
  matrix.decay = true;
  return store.add(std::move(matrix));
}

Embedding::Embedding(ParameterStore& store, const ModelConfig& config, Backend backend,
                     const TensorShards& tensor)
    : store_(store),
      config_(config),
      vocabulary_(tensor.part_of(config.vocabulary)),
      backend_(backend) {
  table_ = add_vocabulary_matrix(store, "embedding.token.weight", config, tensor);
  if (config.position == PositionKind::kLearned)
    positions_ = store.add("embedding.position.weight", {config.max_positions, config.width},
                           {0.02f, 0.0f}, true);
}

void Embedding::prepare(std::int64_t length) {
  if (config_.position != PositionKind::kSinusoidal) return;
  sinusoids_ = Buffer<float>(backend_.device, length, config_.width);
  const auto fill = [&](View<float> table) {
    for (std::int64_t i = 0; i < config_.width; ++i) {
      const std::int64_t pair = i / 2;
      const double frequency =
          std::pow(10000.0, -2.0 * static_cast<double>(pair) / static_cast<double>(config_.width));
      for (std::int64_t p = 0; p < length; ++p) {
        const double angle = static_cast<double>(p) * frequency;
        // Scaled to the size of the token embeddings, which start with deviation 0.02.
        table[p * config_.width + i] =
            static_cast<float>(0.02 * (i % 2 == 0 ? std::sin(angle) : std::cos(angle)));
      }
    }
  };
  write_from_host(backend_.device, backend_.stream, sinusoids_.view(), fill);
}

const float* Embedding::position_table() const {
  if (config_.position == PositionKind::kLearned) return store_.weight(positions_).data();
  if (config_.position == PositionKind::kSinusoidal) return sinusoids_.data();
  return nullptr;
}

Dropout Embedding::dropout(const PassContext& pass) const {
  return pass.dropout(config_.dropout, derive_key(pass.batch.dropout_key, 0), backend_);
}

const std::int32_t* Embedding::own_ids(const PassContext& pass) const {
  const auto& made = pass.own->get<OwnIds>(0, [&] {
    std::vector<std::int32_t> ids(pass.batch.inputs_BT.begin(), pass.batch.inputs_BT.end());
    for (auto& id : ids) {
      const std::int64_t row = id - vocabulary_.begin;
      id = row >= 0 && row < vocabulary_.count ? static_cast<std::int32_t>(row) : -1;
    }
    return std::make_unique<OwnIds>(OwnIds{{backend_.device, backend_.stream, std::move(ids)}});
  });
  return made.rows.data();
}

void Embedding::add_positions(View<float> x_ND, const PassContext& pass) const {
  if (position_table() == nullptr) return;
  Buffer<float> table_rows_ND(backend_.device, x_ND.rows(), x_ND.cols());
  EmbeddingForwardArgs args;
  args.rows = x_ND.rows(), args.width = config_.width;
  args.ids = readable_rows(pass, backend_);
  args.table = position_table();
  args.y = table_rows_ND.data();
  backend_.kernels.embedding_forward(args, backend_.stream);
  backend_.kernels.add(x_ND.size(), table_rows_ND.data(), x_ND.data(), backend_.stream);
}

void Embedding::forward(View<float> x_ND, const PassContext& pass) const {
  PartialRows tokens(x_ND, pass, backend_);
  EmbeddingForwardArgs args;
  args.rows = pass.rows(), args.width = config_.width;
  args.ids = own_ids(pass);
  args.table = store_.weight(table_).data();
  args.position_table = pass.tensor.alone() ? position_table() : nullptr;
  args.positions = readable(pass, backend_), args.tokens = pass.tokens();
  args.y = tokens.view().data();
  backend_.kernels.embedding_forward(args, backend_.stream);
  if (!pass.tensor.alone()) {
    tokens.sum();  // exact: all summands but one are zero
    add_positions(x_ND, pass);
  }
  const Dropout drop = dropout(pass);
  if (drop.probability > 0.0f)
    backend_.kernels.residual_forward(
        {x_ND.rows(), x_ND.cols(), nullptr, x_ND.data(), x_ND.data(), drop}, backend_.stream);
}

void Embedding::backward(View<float> dx_ND, const PassContext& pass) {
  const Dropout drop = dropout(pass);
  if (drop.probability > 0.0f)
    backend_.kernels.residual_backward(
        {dx_ND.rows(), dx_ND.cols(), dx_ND.data(), dx_ND.data(), drop}, backend_.stream);
  const bool learned = config_.position == PositionKind::kLearned;
  const GatheredRows gathered(dx_ND, pass, backend_);
  EmbeddingBackwardArgs args;
  args.rows = pass.rows(), args.width = config_.width;
  args.ids = own_ids(pass);
  args.dy = gathered.view().data();
  args.dtable = store_.gradient(table_).data();
  if (learned && pass.tensor.alone()) args.dposition_table = store_.gradient(positions_).data();
  args.positions = readable(pass, backend_), args.tokens = pass.tokens();
  backend_.kernels.embedding_backward(args, backend_.stream);
  if (!learned || pass.tensor.alone()) return;
  // Every rank adds its own rows to its copy of the position table.
  args.rows = dx_ND.rows(), args.ids = readable_rows(pass, backend_);
  args.dy = dx_ND.data();
  args.dtable = store_.gradient(positions_).data();
  backend_.kernels.embedding_backward(args, backend_.stream);
}

void Embedding::forward_tokens(View<const std::int32_t> ids, std::int64_t first_position,
                               View<float> x_ND) const {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(ids.size()));
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(first_position));
  const Uploaded<std::int32_t> uploaded_ids(backend_.device, backend_.stream, ids),
      uploaded_positions(backend_.device, backend_.stream, std::move(positions));
  EmbeddingForwardArgs args;
  args.rows = ids.size(), args.width = config_.width, args.ids = uploaded_ids.data();
  args.table = store_.weight(table_).data();
  args.position_table = position_table();
  args.positions = uploaded_positions.data(), args.tokens = ids.size();
  args.y = x_ND.data();
  backend_.kernels.embedding_forward(args, backend_.stream);
}

}  // namespace longspan::model
