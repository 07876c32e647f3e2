#include "parallel/traced_group.hpp"

#include <string>
#include <utility>

#include "parallel/trace.hpp"

namespace longspan {
namespace {

class TracedPending final : public Pending {
 public:
  TracedPending(PendingPtr real, trace::Span in_flight, std::string what)
      : in_flight_(std::move(in_flight)), what_(std::move(what)), real_(std::move(real)) {}
  void wait() override {
    {
      const trace::Span waiting("wait for " + what_);
      real_->wait();
    }
    in_flight_.end();
  }

 private:
  trace::Span in_flight_;
  std::string what_;
  PendingPtr real_;
};

class TracedGroup final : public ProcessGroup {
 public:
  TracedGroup(std::unique_ptr<ProcessGroup> real, std::string name)
      : real_(std::move(real)), name_(std::move(name)) {}

  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  std::int64_t bytes_sent() const override { return real_->bytes_sent(); }
  double exposed_seconds() const override { return real_->exposed_seconds(); }

  PendingPtr all_reduce_sum(View<float> data) override {
    return start("all-reduce", data.size(), [&] { return real_->all_reduce_sum(data); });
  }
  PendingPtr all_gather(View<const float> mine, View<float> gathered) override {
    return start("all-gather", mine.size(), [&] { return real_->all_gather(mine, gathered); });
  }
  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    return start("reduce-scatter", parts.size(),
                 [&] { return real_->reduce_scatter_sum(parts, mine); });
  }
  PendingPtr reduce_scatter_parts(View<float> data) override {
    return start("reduce-scatter", data.size(), [&] { return real_->reduce_scatter_parts(data); });
  }
  PendingPtr all_gather_parts(View<float> data) override {
    return start("all-gather", data.size() / size(), [&] { return real_->all_gather_parts(data); });
  }
  PendingPtr send_receive(View<const float> outgoing, int to, View<float> incoming,
                          int from) override {
    return start("send-receive", outgoing.size(),
                 [&] { return real_->send_receive(outgoing, to, incoming, from); });
  }
  PendingPtr all_to_all(View<const float> outgoing,
                        const std::vector<std::int64_t>& outgoing_counts, View<float> incoming,
                        const std::vector<std::int64_t>& incoming_counts) override {
    return start("all-to-all", outgoing.size(), [&] {
      return real_->all_to_all(outgoing, outgoing_counts, incoming, incoming_counts);
    });
  }

 private:
  /// `count`: elements of this rank's own contribution.
  template <class Start>
  PendingPtr start(const char* operation, std::int64_t count, Start&& real) {
    if (!trace::recorder().on() || size() == 1) return real();
    trace::Span in_flight(operation, {{"bytes", static_cast<double>(count) * sizeof(float)}},
                          trace::Track{"communication: " + name_, true});
    return std::make_unique<TracedPending>(real(), std::move(in_flight),
                                           std::string(operation) + " (" + name_ + ")");
  }

  std::unique_ptr<ProcessGroup> real_;
  std::string name_;
};

}  // namespace

MakeGroup traced(MakeGroup make) {
  return [make = std::move(make)](const Communicator& comm) -> std::unique_ptr<ProcessGroup> {
    return std::make_unique<TracedGroup>(make(comm), comm.name());
  };
}

}  // namespace longspan
