/// A device's memory, cut into blocks: the system is asked for a few large pieces, never inside a
/// step once a step has run. Blocks that are given back are handed out again at once: who uses one
/// does so in the order of the compute stream. Read next: device.hpp beside this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace longspan::cuda {

class Arena {
 public:
  /// allocate: null if the system has none left. step_bytes: the least to ask the system for.
  struct System {
    std::function<void*(std::size_t bytes)> allocate;
    std::function<void(void* memory)> release;
    std::size_t step_bytes = 0;
  };
  static constexpr std::size_t kAlignment = 256;

  explicit Arena(System system) : system_(std::move(system)) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// One piece that holds so much, so that a run whose size is planned asks once. False: the system
  /// has not so much left.
  bool reserve(std::size_t bytes);
  /// The smallest free block that is large enough, cut to size; null if there is none and the
  /// system has no more.
  void* allocate(std::size_t bytes);
  /// Throws nothing; `memory` comes from allocate(bytes). Free neighbours become one block.
  void release(void* memory, std::size_t bytes) noexcept;

  std::int64_t bytes_in_use() const;  ///< as asked for
  std::int64_t peak_bytes() const;
  void reset_peak();
  std::int64_t held_bytes() const;          ///< got from the system
  std::int64_t system_allocations() const;  ///< how often the system was asked
  /// Of every piece up to its furthest block since the last reset_peak(): what exceeds peak_bytes()
  /// is alignment and gaps. Blocks come from the smallest gap that is large enough, so a piece's
  /// end is touched only when none is.
  std::int64_t used_bytes() const;

 private:
  struct Block {
    std::size_t bytes = 0;
    char* piece = nullptr;  ///< where the piece begins that the block lies in
    bool free = false;
  };
  using Blocks = std::map<char*, Block>;

  bool grow(std::size_t bytes);
  bool give_back_unused();
  void set_free(Blocks::iterator block);
  void unset_free(Blocks::iterator block);

  System system_;
  mutable std::mutex mutex_;
  Blocks blocks_;                                 ///< every byte of every piece, by address
  std::set<std::pair<std::size_t, char*>> free_;  ///< size, address
  struct Piece {
    std::size_t bytes = 0, used = 0;
  };
  std::map<char*, Piece> pieces_;
  std::int64_t bytes_in_use_ = 0;
  std::int64_t peak_bytes_ = 0;
  std::int64_t held_bytes_ = 0;
  std::int64_t system_allocations_ = 0;
};

}  // namespace longspan::cuda
