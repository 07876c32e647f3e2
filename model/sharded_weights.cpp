#include "model/sharded_weights.hpp"

#include <vector>

namespace longspan::model {
namespace {

class WholeWeights : public ShardedWeights {
 public:
  explicit WholeWeights(ParameterStore& store) : store_(store) {}
  void need(int, int) override {}
  void done(int) override {}
  void updated() override {}
  void wait() override {}
  float* owned(int unit) override {
    return store_.weights().data() + store_.units()[static_cast<std::size_t>(unit)].begin;
  }

 private:
  ParameterStore& store_;
};

class GatheredWeights : public ShardedWeights {
 public:
  GatheredWeights(ParameterStore& store, const ShardMap& map, ProcessGroup& group)
      : store_(store),
        map_(map),
        group_(group),
        on_the_way_(static_cast<std::size_t>(map.units())) {}

  void need(int unit, int) override {
    if (auto& transfer = on_the_way_[static_cast<std::size_t>(unit)]) {
      transfer->wait();
      transfer.reset();
    }
  }
  void done(int) override {}
  void updated() override {
    wait();
    for (int u = 0; u < map_.units(); ++u)
      on_the_way_[static_cast<std::size_t>(u)] =
          group_.all_gather_parts(store_.weights().slice(map_.unit(u).begin, map_.unit(u).count));
  }
  void wait() override {
    for (int u = 0; u < map_.units(); ++u) need(u, -1);
  }
  float* owned(int unit) override {
    return store_.weights().data() + map_.owned(unit, group_.rank()).begin;
  }

 private:
  ParameterStore& store_;
  const ShardMap& map_;
  ProcessGroup& group_;
  std::vector<PendingPtr> on_the_way_;
};

class UnitWeights : public ShardedWeights {
 public:
  UnitWeights(ParameterStore& store, const ShardMap& map, ProcessGroup& group, Device& device)
      : store_(store),
        map_(map),
        group_(group),
        device_(device),
        shard_(device, map.shard_offset(map.units(), group.rank())),
        units_(static_cast<std::size_t>(map.units())) {}

  void need(int unit, int next) override {
    Unit& u = at(unit);
    start(unit);
    if (u.gathering) {
      u.gathering->wait();
      u.gathering.reset();
      store_.place_weights(unit, u.whole.data());
    }
    if (next >= 0) start(next);
  }
  void done(int unit) override {
    Unit& u = at(unit);
    if (u.gathering) u.gathering->wait();
    u.gathering.reset();
    store_.place_weights(unit, nullptr);
    u.whole.clear();
  }
  void updated() override {
    for (int u = 0; u < map_.units(); ++u) done(u);
    start(0);  // what the next forward begins with
  }
  void wait() override {
    for (Unit& u : units_)
      if (u.gathering) u.gathering->wait();
  }
  float* owned(int unit) override { return shard_.data() + map_.shard_offset(unit, group_.rank()); }

 private:
  struct Unit {
    Buffer<float> whole;
    PendingPtr gathering;  // behind its buffer: it is waited for before that goes
  };
  Unit& at(int unit) { return units_[static_cast<std::size_t>(unit)]; }

  void start(int unit) {
    Unit& u = at(unit);
    if (!u.whole.empty()) return;
    const FlatRange mine = map_.owned(unit, group_.rank()), all = map_.unit(unit);
    u.whole = Buffer<float>(device_, all.count);
    device_.copy(u.whole.data() + (mine.begin - all.begin), owned(unit),
                 static_cast<std::size_t>(mine.count) * sizeof(float), device_.stream());
    u.gathering = group_.all_gather_parts(u.whole);
  }

  ParameterStore& store_;
  const ShardMap& map_;
  ProcessGroup& group_;
  Device& device_;
  Buffer<float> shard_;
  std::vector<Unit> units_;
};

}  // namespace

std::unique_ptr<ShardedWeights> make_whole_weights(ParameterStore& store) {
  return std::make_unique<WholeWeights>(store);
}

std::unique_ptr<ShardedWeights> make_gathered_weights(ParameterStore& store, const ShardMap& map,
                                                      ProcessGroup& group) {
  return std::make_unique<GatheredWeights>(store, map, group);
}

std::unique_ptr<ShardedWeights> make_unit_weights(ParameterStore& store, const ShardMap& map,
                                                  ProcessGroup& group, Device& device) {
  return std::make_unique<UnitWeights>(store, map, group, device);
}

}  // namespace longspan::model
