/// What layers work out from a pass once and all of them use, above all integer arrays where
/// kernels read them. One object of each type (and variant), made by whoever asks first. Read next:
/// layer.hpp.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <typeindex>
#include <typeinfo>
#include <utility>

namespace longspan::model {

class PassCache {
 public:
  /// make(): std::unique_ptr<T>, from things that do not change while this lives.
  template <class T, class Make>
  const T& get(std::int64_t variant, Make&& make) {
    std::shared_ptr<void>& slot = made_[{std::type_index(typeid(T)), variant}];
    if (!slot) slot = std::shared_ptr<T>(std::forward<Make>(make)());
    return *static_cast<const T*>(slot.get());
  }

 private:
  std::map<std::pair<std::type_index, std::int64_t>, std::shared_ptr<void>> made_;
};

}  // namespace longspan::model
