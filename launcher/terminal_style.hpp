/// Bold, dim and coloured words, on a terminal only: whoever reads a pipe gets plain text.
#pragma once

#include <cstdio>
#include <string>

namespace longspan::launcher {

class Style {
 public:
  /// Plain.
  Style() = default;
  /// Coloured if `out` is a terminal that can, and the user has not set NO_COLOR (no-color.org:
  /// to anything but the empty text).
  static Style of(std::FILE* out);

  explicit Style(bool coloured) : coloured_(coloured) {}
  std::string bold(const std::string& text) const { return wrapped("1", text); }
  std::string dim(const std::string& text) const { return wrapped("2", text); }
  std::string good(const std::string& text) const { return wrapped("32", text); }
  std::string bad(const std::string& text) const { return wrapped("1;31", text); }

 private:
  std::string wrapped(const char* code, const std::string& text) const;
  bool coloured_ = false;
};

}  // namespace longspan::launcher
