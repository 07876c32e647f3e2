#include "support/guarded_device.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "parallel/error.hpp"

namespace longspan::testing_support {
namespace {

GuardedDevice* watched = nullptr;
struct sigaction before = {};

/// The program is broken where it stands: nothing else can be said safely than one line.
void on_fault(int signal, siginfo_t* what, void* context) {
  if (watched != nullptr && watched->owns(what->si_addr)) {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    char line[256];
    const int length = std::snprintf(
        line, sizeof line, "%s.%s: host code touches memory of the device at %p: copy it instead\n",
        test ? test->test_suite_name() : "", test ? test->name() : "outside of a test",
        what->si_addr);
    if (::write(STDERR_FILENO, line, static_cast<std::size_t>(length)) < 0) ::_exit(1);
  }
  ::sigaction(signal, &before, nullptr);
  if (before.sa_flags & SA_SIGINFO && before.sa_sigaction != nullptr)
    before.sa_sigaction(signal, what, context);
  // Returning meets the fault again, with the handler from before.
}

constexpr std::size_t kAlignment = 64;

/// A group's operation on the host's copies of what lies on the device.
class GuardedGroup final : public ProcessGroup {
 public:
  GuardedGroup(GuardedDevice& device, const Communicator& comm)
      : device_(device), real_(make_mpi_group(comm)) {}

  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  std::int64_t bytes_sent() const override { return real_->bytes_sent(); }
  double exposed_seconds() const override { return real_->exposed_seconds(); }

  PendingPtr all_reduce_sum(View<float> data) override {
    return start({}, data, true, [&](Staged& op) { return real_->all_reduce_sum(op.incoming()); });
  }
  PendingPtr all_gather(View<const float> mine, View<float> gathered) override {
    return start(mine, gathered, false,
                 [&](Staged& op) { return real_->all_gather(op.outgoing(), op.incoming()); });
  }
  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    return start(parts, mine, false, [&](Staged& op) {
      return real_->reduce_scatter_sum(op.outgoing(), op.incoming());
    });
  }
  PendingPtr reduce_scatter_parts(View<float> data) override {
    return start({}, data, true,
                 [&](Staged& op) { return real_->reduce_scatter_parts(op.incoming()); });
  }
  PendingPtr all_gather_parts(View<float> data) override {
    return start({}, data, true,
                 [&](Staged& op) { return real_->all_gather_parts(op.incoming()); });
  }
  PendingPtr send_receive(View<const float> outgoing, int to, View<float> incoming,
                          int from) override {
    return start(outgoing, incoming, false, [&](Staged& op) {
      return real_->send_receive(op.outgoing(), to, op.incoming(), from);
    });
  }
  PendingPtr all_to_all(View<const float> outgoing,
                        const std::vector<std::int64_t>& outgoing_counts, View<float> incoming,
                        const std::vector<std::int64_t>& incoming_counts) override {
    return start(outgoing, incoming, false, [&](Staged& op) {
      return real_->all_to_all(op.outgoing(), outgoing_counts, op.incoming(), incoming_counts);
    });
  }

 private:
  class Staged final : public Pending {
   public:
    Staged(GuardedDevice& device, View<const float> out, View<float> in, bool in_place)
        : device_(device),
          target_(in),
          outgoing_(static_cast<std::size_t>(out.size())),
          incoming_(static_cast<std::size_t>(in.size())) {
      device.copy(outgoing_.data(), out.data(), outgoing_.size() * sizeof(float), device.stream());
      if (in_place)
        device.copy(incoming_.data(), in.data(), incoming_.size() * sizeof(float), device.stream());
    }
    View<const float> outgoing() const {
      return {outgoing_.data(), static_cast<std::int64_t>(outgoing_.size())};
    }
    View<float> incoming() {
      return {incoming_.data(), static_cast<std::int64_t>(incoming_.size())};
    }
    void on_its_way(PendingPtr real) { real_ = std::move(real); }
    void wait() override {
      if (!real_) return;
      std::exchange(real_, nullptr)->wait();
      device_.copy(target_.data(), incoming_.data(), incoming_.size() * sizeof(float),
                   device_.stream());
    }

   private:
    GuardedDevice& device_;
    View<float> target_;
    std::vector<float> outgoing_, incoming_;
    PendingPtr real_;  // behind its buffers: it ends before they do
  };

  template <class Start>
  PendingPtr start(View<const float> out, View<float> in, bool in_place, Start&& real) {
    for (const void* memory :
         {static_cast<const void*>(out.data()), static_cast<const void*>(in.data())})
      if (memory != nullptr && !device_.owns(memory))
        fail("a group of the device was given memory of the host");
    auto op = std::make_unique<Staged>(device_, out, in, in_place);
    op->on_its_way(real(*op));
    return op;
  }

  GuardedDevice& device_;
  std::unique_ptr<ProcessGroup> real_;
};

}  // namespace

GuardedDevice::GuardedDevice(std::size_t capacity) : capacity_(capacity) {
  void* const memory =
      mmap(nullptr, capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no addresses for the {} bytes of a guarded device", capacity);
  begin_ = static_cast<char*>(memory);
  watched = this;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGSEGV, &action, &before);
}

GuardedDevice::~GuardedDevice() {
  ::sigaction(SIGSEGV, &before, nullptr);
  watched = nullptr;
  munmap(begin_, capacity_);
}

bool GuardedDevice::owns(const void* memory) const {
  return memory >= begin_ && memory < begin_ + capacity_;
}

void* GuardedDevice::allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  const std::size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (const auto fit = free_.find(size); fit != free_.end()) {
      memory = fit->second;
      free_.erase(fit);
    } else {
      if (used_ + size > capacity_) fail("a guarded device has no {} bytes left", bytes);
      memory = begin_ + used_;
      used_ += size;
    }
    live_.emplace(memory, size);
    bytes_in_use_ += static_cast<std::int64_t>(bytes);
    peak_bytes_ = std::max(peak_bytes_, bytes_in_use_);
  }
  const Access access(*this);
  std::memset(memory, 0xff, size);
  return memory;
}

void GuardedDevice::release(void* memory, std::size_t bytes) noexcept {
  if (memory == nullptr) return;
  const std::lock_guard lock(mutex_);
  const auto entry = live_.find(memory);
  free_.emplace(entry->second, memory);
  live_.erase(entry);
  bytes_in_use_ -= static_cast<std::int64_t>(bytes);
}

void GuardedDevice::copy(void* to, const void* from, std::size_t bytes, Stream&) {
  if (bytes == 0) return;
  const Access access(*this);
  std::memcpy(to, from, bytes);
}

void GuardedDevice::fill_zero(void* to, std::size_t bytes, Stream&) {
  if (bytes == 0) return;
  if (!owns(to)) fail("fill_zero was given memory of the host");
  const Access access(*this);
  std::memset(to, 0, bytes);
}

std::int64_t GuardedDevice::bytes_in_use() const {
  const std::lock_guard lock(mutex_);
  return bytes_in_use_;
}
std::int64_t GuardedDevice::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_bytes_;
}
void GuardedDevice::reset_peak() {
  const std::lock_guard lock(mutex_);
  peak_bytes_ = bytes_in_use_;
}

void GuardedDevice::protect(int what) {
  if (mprotect(begin_, capacity_, what) != 0) fail("mprotect failed on a guarded device");
}

GuardedDevice::Access::Access(GuardedDevice& device) : device_(device) {
  const std::lock_guard lock(device_.mutex_);
  ++device_.accesses_;
  if (device_.open_++ == 0) device_.protect(PROT_READ | PROT_WRITE);
}
GuardedDevice::Access::~Access() {
  const std::lock_guard lock(device_.mutex_);
  if (--device_.open_ == 0) device_.protect(PROT_NONE);
}

void GuardedKernels::require(std::initializer_list<const void*> arguments) const {
  for (const void* memory : arguments)
    if (memory != nullptr && !device_.owns(memory))
      fail("a kernel of the device was given memory of the host");
}

void GuardedKernels::require_true_hints(const model::AttentionShape& shape) const {
  const GuardedDevice::Access access(device_);
  const auto check = [](const model::PositionRuns& runs, const std::int32_t* positions,
                        std::int64_t count) {
    std::int64_t at = 0;
    for (int r = 0; r < runs.count; ++r)
      for (std::int64_t i = 0; i < runs.run[r].tokens; ++i, ++at)
        if (at >= count || positions[at] != runs.run[r].first_position + i)
          fail("token {} has not the position that the runs of its side say", at);
    if (runs.count > 0 && at != count) fail("the runs of {} tokens have {}", count, at);
  };
  check(shape.query_runs, shape.query_positions, shape.queries);
  check(shape.key_runs, shape.key_positions, shape.keys);
}

void GuardedKernels::observe(const model::OperationCall&, Stream&,
                             const std::function<void()>& call) {
  const GuardedDevice::Access access(device_);
  call();
}

std::unique_ptr<ProcessGroup> make_guarded_group(GuardedDevice& device, const Communicator& comm) {
  return std::make_unique<GuardedGroup>(device, comm);
}

GuardedDevice& guarded_device() {
  // Never destroyed: buffers of other static objects may outlive it.
  static GuardedDevice& device = *new GuardedDevice;
  return device;
}

launcher::Compute guarded_compute() {
  GuardedDevice& device = guarded_device();
  static GuardedKernels kernels(device);
  return {{device, kernels, device.stream()},
          [&device](const Communicator& comm) { return make_guarded_group(device, comm); },
          device.name()};
}

}  // namespace longspan::testing_support
