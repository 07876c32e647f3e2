#include "parallel/cuda/host_offload.hpp"

#include <deque>
#include <utility>
#include <vector>

#include "parallel/cuda/pinned.hpp"

namespace longspan::cuda {
namespace {

class HostOffload final : public OffloadStack {
 public:
  explicit HostOffload(CudaDevice& device) : device_(device) {}
  ~HostOffload() override { clear(); }

  void push(Group group) override {
    release_last();
    Entry& entry = stack_.emplace_back();
    for (const Buffer<float>& buffer : group) {
      entry.shapes.emplace_back(buffer.rows(), buffer.cols());
      entry.bytes += bytes_of(buffer);
    }
    char* at = room_for(stack_.size() - 1, entry.bytes);
    order(device_.stream(), device_.copy_stream());
    for (const Buffer<float>& buffer : group) {
      copy(at, buffer.data(), bytes_of(buffer), cudaMemcpyDeviceToHost);
      at += bytes_of(buffer);
    }
    entry.moved.record(device_.copy_stream());
    entry.buffers = std::move(group);
  }

  void prefetch() override {
    if (stack_.empty() || stack_.back().asked_for) return;
    release_last();
    Entry& entry = stack_.back();
    for (const auto& [rows, cols] : entry.shapes)
      entry.buffers.push_back(rows * cols == 0 ? Buffer<float>()
                                               : Buffer<float>(device_, rows, cols));
    // Until now the compute stream may be using this memory for something else.
    order(device_.stream(), device_.copy_stream());
    const char* at = static_cast<const char*>(host_[stack_.size() - 1].data());
    for (const Buffer<float>& buffer : entry.buffers) {
      copy(buffer.data(), at, bytes_of(buffer), cudaMemcpyHostToDevice);
      at += bytes_of(buffer);
    }
    entry.moved.record(device_.copy_stream());
    entry.asked_for = true;
  }

  Group pop() override {
    prefetch();
    stack_.back().moved.make_wait(device_.stream());
    Group group = std::move(stack_.back().buffers);
    stack_.pop_back();
    return group;
  }

  void clear() override {
    if (stack_.empty()) return;
    device_.copy_stream().synchronize();
    stack_.clear();
  }

 private:
  struct Entry {
    Group buffers;  ///< on the device: on their way out, or asked for
    std::vector<std::pair<std::int64_t, std::int64_t>> shapes;
    std::size_t bytes = 0;
    Event moved;
    bool asked_for = false;
  };
  static std::size_t bytes_of(const Buffer<float>& buffer) {
    return static_cast<std::size_t>(buffer.size()) * sizeof(float);
  }

  /// The group on top gives its memory back when it has left: whatever uses that memory next is
  /// ordered behind the copy.
  void release_last() {
    if (stack_.empty() || stack_.back().buffers.empty() || stack_.back().asked_for) return;
    stack_.back().moved.make_wait(device_.stream());
    stack_.back().buffers.clear();
  }
  static void order(Stream& first, Stream& then) {
    Event here;
    here.record(first);
    here.make_wait(then);
  }
  /// Place `level` of the stack has its own memory: every pass puts the same there.
  char* room_for(std::size_t level, std::size_t bytes) {
    if (host_.size() <= level) host_.resize(level + 1);
    if (host_[level].bytes() < bytes) {
      device_.copy_stream().synchronize();  // the old memory may be on its way
      host_[level] = {};
      host_[level] = PinnedMemory(bytes);
    }
    return static_cast<char*>(host_[level].data());
  }
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    if (bytes > 0)
      LONGSPAN_CUDA(cudaMemcpyAsync(to, from, bytes, kind, native(device_.copy_stream())));
  }

  CudaDevice& device_;
  std::deque<Entry> stack_;
  std::vector<PinnedMemory> host_;  ///< by place in the stack
};

}  // namespace

std::unique_ptr<OffloadStack> make_host_offload(CudaDevice& device) {
  return std::make_unique<HostOffload>(device);
}

}  // namespace longspan::cuda
