/// Memory that is not needed for a while waits in a file: an unlinked temporary file of this
/// process, written and read back by a thread of its own while the caller computes. A stack in the
/// manner of forward and backward: what went out last comes back first. Used by
/// model/transformer.cpp for memory.offload=file.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "parallel/offload_stack.hpp"

namespace longspan {

class SpillFile final : public OffloadStack {
 public:
  /// For buffers of `device`. Opens the file in `directory` and, where the file system can,
  /// reserves `bytes` at once, so that a disk too small is found before the work begins. Throws
  /// Error with the directory and what it has.
  SpillFile(const std::string& directory, std::int64_t bytes, Device& device = cpu_device());
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;
  ~SpillFile() override;  ///< the file goes with the process or with this object

  /// Puts a group on the stack. Its memory is given back as soon as it is written; the previous
  /// group has been when this returns, so at most one group is on its way. Empty buffers stay
  /// empty. Throws Error if a write failed.
  void push(Group group) override;
  /// Makes room for the group on top and begins to read it; nothing if that has begun already or
  /// the stack is empty.
  void prefetch() override;
  /// Takes the group off the top, the same shapes and bits, waiting for it if it has not arrived.
  /// Throws Error if reading failed.
  Group pop() override;
  /// Forgets all groups, after an exception has ended a pass.
  void clear() override;

  std::int64_t groups() const { return static_cast<std::int64_t>(stack_.size()); }
  std::int64_t bytes_written() const { return bytes_written_; }  ///< by all pushes so far

 private:
  struct Entry {
    Group buffers;  ///< in memory: on its way out, or asked for
    std::vector<std::pair<std::int64_t, std::int64_t>> shapes;
    std::int64_t offset = 0;
    bool asked_for = false;
  };
  struct Job {
    Entry* entry;
    bool write;
  };
  void submit(Entry& entry, bool write);
  void wait_idle();
  void work();
  void transfer(const Job& job);
  /// Moves `bytes` of memory of the host, or fails.
  void move(char* data, std::int64_t bytes, std::int64_t offset, bool write);

  std::string directory_;
  Device& device_;
  std::vector<char> staging_;  ///< between the file and memory that the host cannot reach
  int file_ = -1;
  std::deque<Entry> stack_;  ///< a deque: entries stay where they are
  std::int64_t end_ = 0;     ///< bytes of the file in use
  std::int64_t bytes_written_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  bool busy_ = false, stop_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace longspan
