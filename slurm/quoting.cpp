#include "slurm/quoting.hpp"

#include <algorithm>
#include <cctype>

namespace longspan::slurm {
namespace {

bool harmless(unsigned char c) {
  return std::isalnum(c) != 0 ||
         std::string_view("_-./=:,+@%").find(static_cast<char>(c)) != std::string_view::npos;
}

}  // namespace

std::string shell_quoted(const std::string& word) {
  if (!word.empty() && std::all_of(word.begin(), word.end(), harmless)) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string sbatch_quoted(std::string_view value) {
  if (!value.empty() && std::all_of(value.begin(), value.end(), harmless))
    return std::string(value);
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += std::iscntrl(static_cast<unsigned char>(c)) != 0 ? '?' : c;
  }
  return quoted + '"';
}

std::vector<std::string> split_words(std::string_view text, bool* closed) {
  std::vector<std::string> words;
  bool in_word = false;
  char quote = '\0';
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote == '\0' && std::isspace(static_cast<unsigned char>(c)) != 0) {
      in_word = false;
      continue;
    }
    if (!in_word) words.emplace_back();
    in_word = true;
    if (quote == '\0' && (c == '\'' || c == '"')) {
      quote = c;
    } else if (c == quote) {
      quote = '\0';
    } else if (quote == '"' && c == '\\' && i + 1 < text.size() &&
               (text[i + 1] == '"' || text[i + 1] == '\\')) {
      words.back() += text[++i];
    } else {
      words.back() += c;
    }
  }
  if (closed != nullptr) *closed = quote == '\0';
  return words;
}

}  // namespace longspan::slurm
