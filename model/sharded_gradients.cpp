#include "model/sharded_gradients.hpp"

#include <deque>
#include <utility>
#include <vector>

#include "parallel/data_parallel.hpp"

namespace longspan::model {
namespace {

void zero(View<float> data, Backend backend) {
  backend.device.fill_zero(data.data(), static_cast<std::size_t>(data.size()) * sizeof(float),
                           backend.stream);
}

class ReducedGradients : public ShardedGradients {
 public:
  ReducedGradients(ParameterStore& store, ProcessGroup& group, Backend backend,
                   std::int64_t bucket_elements)
      : store_(store), backend_(backend), reducer_(group, store.gradients(), bucket_elements) {}

  void begin_micro_batch(bool last) override { last_ = last; }
  void need(int) override {}
  void final(int unit) override {
    if (last_) reducer_.ready_from(store_.units()[static_cast<std::size_t>(unit)].begin);
  }
  void finish() override { reducer_.finish(); }
  void clear() override { zero(store_.gradients(), backend_); }
  float* owned(int unit) override {
    return store_.gradients().data() + store_.units()[static_cast<std::size_t>(unit)].begin;
  }

 private:
  ParameterStore& store_;
  Backend backend_;
  GradientReducer reducer_;
  bool last_ = true;
};

class ScatteredGradients : public ShardedGradients {
 public:
  ScatteredGradients(ParameterStore& store, const ShardMap& map, ProcessGroup& group,
                     Backend backend)
      : store_(store), map_(map), group_(group), backend_(backend) {}

  void begin_micro_batch(bool last) override { last_ = last; }
  void need(int) override {}
  void final(int unit) override {
    if (!last_) return;
    const FlatRange range = map_.unit(unit);
    on_the_way_.push_back(
        group_.reduce_scatter_parts(store_.gradients().slice(range.begin, range.count)));
  }
  void finish() override {
    for (PendingPtr& transfer : on_the_way_) transfer->wait();
    on_the_way_.clear();
  }
  void clear() override { zero(store_.gradients(), backend_); }
  float* owned(int unit) override {
    return store_.gradients().data() + map_.owned(unit, group_.rank()).begin;
  }

 private:
  ParameterStore& store_;
  const ShardMap& map_;
  ProcessGroup& group_;
  Backend backend_;
  std::vector<PendingPtr> on_the_way_;
  bool last_ = true;
};

class UnitGradients : public ShardedGradients {
 public:
  UnitGradients(ParameterStore& store, const ShardMap& map, ProcessGroup& group, Backend backend)
      : store_(store),
        map_(map),
        group_(group),
        backend_(backend),
        shard_(backend.device, map.shard_offset(map.units(), group.rank())),
        units_(static_cast<std::size_t>(map.units())) {
    zero(shard_, backend_);
  }

  void begin_micro_batch(bool) override {}
  void need(int unit) override {
    // Of the transfers before this one the last may still be on its way, but not one of this unit.
    while (on_the_way_.size() > 1 || (!on_the_way_.empty() && on_the_way_.front().unit == unit))
      add_oldest();
    Buffer<float>& whole = units_[static_cast<std::size_t>(unit)];
    if (!whole.empty()) return;
    whole = Buffer<float>(backend_.device, map_.unit(unit).count);
    zero(whole, backend_);
    store_.place_gradients(unit, whole.data());
  }
  void final(int unit) override {
    store_.place_gradients(unit, nullptr);
    Transfer transfer{unit, std::move(units_[static_cast<std::size_t>(unit)]), nullptr};
    transfer.pending = group_.reduce_scatter_parts(transfer.whole);
    on_the_way_.push_back(std::move(transfer));
  }
  void finish() override {
    while (!on_the_way_.empty()) add_oldest();
  }
  void clear() override { zero(shard_, backend_); }
  float* owned(int unit) override { return shard_.data() + map_.shard_offset(unit, group_.rank()); }

 private:
  struct Transfer {
    int unit;
    Buffer<float> whole;
    PendingPtr pending;  // behind its buffer: it is waited for before that goes
  };

  void add_oldest() {
    Transfer& oldest = on_the_way_.front();
    oldest.pending->wait();
    const FlatRange mine = map_.owned(oldest.unit, group_.rank());
    backend_.kernels.add(mine.count,
                         oldest.whole.data() + (mine.begin - map_.unit(oldest.unit).begin),
                         owned(oldest.unit), backend_.stream);
    on_the_way_.pop_front();
  }

  ParameterStore& store_;
  const ShardMap& map_;
  ProcessGroup& group_;
  Backend backend_;
  Buffer<float> shard_;
  std::vector<Buffer<float>> units_;  ///< between need() and final()
  std::deque<Transfer> on_the_way_;
};

}  // namespace

std::unique_ptr<ShardedGradients> make_reduced_gradients(ParameterStore& store, ProcessGroup& group,
                                                         Backend backend,
                                                         std::int64_t bucket_elements) {
  return std::make_unique<ReducedGradients>(store, group, backend, bucket_elements);
}

std::unique_ptr<ShardedGradients> make_scattered_gradients(ParameterStore& store,
                                                           const ShardMap& map, ProcessGroup& group,
                                                           Backend backend) {
  return std::make_unique<ScatteredGradients>(store, map, group, backend);
}

std::unique_ptr<ShardedGradients> make_unit_gradients(ParameterStore& store, const ShardMap& map,
                                                      ProcessGroup& group, Backend backend) {
  return std::make_unique<UnitGradients>(store, map, group, backend);
}

}  // namespace longspan::model
