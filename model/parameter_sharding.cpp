#include "model/parameter_sharding.hpp"

#include "model/sharded_gradients.hpp"
#include "model/sharded_weights.hpp"

namespace longspan::model {

ParameterSharding::ParameterSharding(OptimizerShard shard, ParameterStore& store,
                                     ProcessGroup& group, const Communicator& owners,
                                     Backend backend, std::int64_t bucket_elements)
    : store_(store),
      owners_(owners),
      map_(store.units(), group.size()),
      whole_(shard == OptimizerShard::kNone) {
  if (whole_)
    weights_ = make_whole_weights(store);
  else if (shard == OptimizerShard::kParameters)
    weights_ = make_unit_weights(store, map_, group, backend.device);
  else
    weights_ = make_gathered_weights(store, map_, group);

  if (whole_)
    gradients_ = make_reduced_gradients(store, group, backend, bucket_elements);
  else if (shard == OptimizerShard::kStates)
    gradients_ = make_scattered_gradients(store, map_, group, backend);
  else
    gradients_ = make_unit_gradients(store, map_, group, backend);

  if (whole_)
    owned_.push_back({{0, store.count()}, weights_->owned(0), gradients_->owned(0)});
  else
    for (int u = 0; u < map_.units(); ++u)
      if (const FlatRange mine = map_.owned(u, group.rank()); mine.count > 0)
        owned_.push_back({mine, weights_->owned(u), gradients_->owned(u)});
  store.set_keeper(this);
}

ParameterSharding::~ParameterSharding() {
  store_.set_keeper(nullptr);
}

void ParameterSharding::initialize(std::uint64_t seed) {
  for (const OwnedRange& mine : owned_) store_.initialize(seed, {mine.range, mine.weight});
  updated();
}

void ParameterSharding::begin_micro_batch(bool last) {
  gradients_->begin_micro_batch(last);
}
void ParameterSharding::finish_gradients() {
  gradients_->finish();
}

double ParameterSharding::sum_over_owners(double mine) const {
  return whole_ ? mine : owners_.all_reduce_sum(mine);
}

void ParameterSharding::updated() {
  gradients_->clear();
  weights_->updated();
}
void ParameterSharding::wait_for_weights() {
  weights_->wait();
}

void ParameterSharding::need_weights(int unit, int next) {
  weights_->need(unit, next);
}
void ParameterSharding::done_weights(int unit) {
  weights_->done(unit);
}
void ParameterSharding::need_gradients(int unit) {
  gradients_->need(unit);
}
void ParameterSharding::gradients_final(int unit) {
  gradients_->final(unit);
}

}  // namespace longspan::model
