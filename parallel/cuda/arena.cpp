#include "parallel/cuda/arena.hpp"

#include <algorithm>
#include <cassert>
#include <iterator>

namespace longspan::cuda {
namespace {

std::size_t round_up(std::size_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena::~Arena() {
  for (const auto& [memory, piece] : pieces_) system_.release(memory);
}

void Arena::set_free(Blocks::iterator block) {
  block->second.free = true;
  free_.emplace(block->second.bytes, block->first);
}

void Arena::unset_free(Blocks::iterator block) {
  block->second.free = false;
  free_.erase({block->second.bytes, block->first});
}

bool Arena::grow(std::size_t bytes) {
  char* const piece = static_cast<char*>(system_.allocate(bytes));
  if (piece == nullptr) return false;
  ++system_allocations_;
  held_bytes_ += static_cast<std::int64_t>(bytes);
  pieces_.emplace(piece, Piece{bytes, 0});
  set_free(blocks_.emplace(piece, Block{bytes, piece, true}).first);
  return true;
}

bool Arena::give_back_unused() {
  bool any = false;
  for (auto piece = pieces_.begin(); piece != pieces_.end();) {
    const auto block = blocks_.find(piece->first);
    if (!block->second.free || block->second.bytes != piece->second.bytes) {
      ++piece;
      continue;
    }
    unset_free(block);
    blocks_.erase(block);
    system_.release(piece->first);
    held_bytes_ -= static_cast<std::int64_t>(piece->second.bytes);
    piece = pieces_.erase(piece);
    any = true;
  }
  return any;
}

bool Arena::reserve(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  return grow(round_up(std::max(bytes, kAlignment)));
}

void* Arena::allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  const std::size_t size = round_up(std::max<std::size_t>(bytes, 1));
  auto fit = free_.lower_bound({size, nullptr});
  if (fit == free_.end()) {
    // A large step first, then what is needed alone, then that in the place of unused pieces.
    if (!(size < system_.step_bytes && grow(system_.step_bytes)) && !grow(size) &&
        !(give_back_unused() && grow(size)))
      return nullptr;
    fit = free_.lower_bound({size, nullptr});
  }
  const auto block = blocks_.find(fit->second);
  unset_free(block);
  const std::size_t rest = block->second.bytes - size;
  if (rest > 0) {
    block->second.bytes = size;
    set_free(blocks_.emplace(block->first + size, Block{rest, block->second.piece, true}).first);
  }
  Piece& piece = pieces_.at(block->second.piece);
  piece.used =
      std::max(piece.used, static_cast<std::size_t>(block->first - block->second.piece) + size);
  bytes_in_use_ += static_cast<std::int64_t>(bytes);
  peak_bytes_ = std::max(peak_bytes_, bytes_in_use_);
  return block->first;
}

void Arena::release(void* memory, std::size_t bytes) noexcept {
  if (memory == nullptr) return;
  const std::lock_guard lock(mutex_);
  auto block = blocks_.find(static_cast<char*>(memory));
  assert(block != blocks_.end() && !block->second.free);
  bytes_in_use_ -= static_cast<std::int64_t>(bytes);
  const auto joins = [&](Blocks::iterator other) {
    return other->second.free && other->second.piece == block->second.piece;
  };
  if (const auto next = std::next(block); next != blocks_.end() && joins(next)) {
    unset_free(next);
    block->second.bytes += next->second.bytes;
    blocks_.erase(next);
  }
  if (block != blocks_.begin()) {
    const auto previous = std::prev(block);
    if (joins(previous)) {
      unset_free(previous);
      previous->second.bytes += block->second.bytes;
      blocks_.erase(block);
      block = previous;
    }
  }
  set_free(block);
}

std::int64_t Arena::bytes_in_use() const {
  const std::lock_guard lock(mutex_);
  return bytes_in_use_;
}
std::int64_t Arena::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_bytes_;
}
void Arena::reset_peak() {
  const std::lock_guard lock(mutex_);
  peak_bytes_ = bytes_in_use_;
  for (auto& [memory, piece] : pieces_) piece.used = 0;
  for (const auto& [memory, block] : blocks_)  // in rising order
    if (!block.free)
      pieces_.at(block.piece).used = static_cast<std::size_t>(memory - block.piece) + block.bytes;
}
std::int64_t Arena::held_bytes() const {
  const std::lock_guard lock(mutex_);
  return held_bytes_;
}
std::int64_t Arena::used_bytes() const {
  const std::lock_guard lock(mutex_);
  std::int64_t used = 0;
  for (const auto& [memory, piece] : pieces_) used += static_cast<std::int64_t>(piece.used);
  return used;
}
std::int64_t Arena::system_allocations() const {
  const std::lock_guard lock(mutex_);
  return system_allocations_;
}

}  // namespace longspan::cuda
