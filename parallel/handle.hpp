/// Owning wrapper of C handles.
#pragma once

#include <utility>

namespace longspan {

/// Owns one C handle. A default or moved-from Handle holds Null and releases nothing.
template <class T, T Null, auto Release>
class Handle {
 public:
  explicit Handle(T raw = Null) : raw_(raw) {}
  Handle(Handle&& other) noexcept : raw_(std::exchange(other.raw_, Null)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(raw_, other.raw_);
    return *this;
  }
  ~Handle() { reset(); }

  T get() const { return raw_; }
  explicit operator bool() const { return raw_ != Null; }
  T release() { return std::exchange(raw_, Null); }
  void reset() {
    if (raw_ != Null) Release(raw_);
    raw_ = Null;
  }

 private:
  T raw_;
};

}  // namespace longspan
