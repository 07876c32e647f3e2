#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "io/token_dataset.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

std::int32_t parse_id(const std::string& word) {
  std::int32_t id = -1;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
  if (error != std::errc() || end != word.data() + word.size() || id < 0)
    fail_usage("'{}' is not a token id: this dataset has no letters, give ids separated by spaces",
               word);
  return id;
}

}  // namespace

Tokenizer::Tokenizer(const std::string& json) {
  const auto parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object() || !parsed.contains("kind") || !parsed["kind"].is_string())
    fail_damaged("tokenizer '{}' is not a JSON object with a \"kind\"", json.substr(0, 80));
  kind_ = parsed["kind"];
  if (kind_ == "nucleotides") {
    if (!parsed.contains("letters") || !parsed["letters"].is_string() ||
        parsed["letters"].get<std::string>().empty())
      fail_damaged("tokenizer '{}' lists no \"letters\"", json.substr(0, 80));
    letters_ = parsed["letters"];
    for (const char letter : letters_)
      if (letter < '!' || letter > '~')
        fail_damaged("tokenizer '{}' has letters that are not printable ASCII", json.substr(0, 80));
  } else if (kind_ != "bytes" && kind_ != "ids") {
    fail_damaged(
        "tokenizer kind '{}' is unknown to this version: it knows bytes, nucleotides and ids",
        kind_);
  }
}

std::vector<std::int32_t> Tokenizer::encode(const std::string& text) const {
  std::vector<std::int32_t> ids;
  if (kind_ == "bytes") {
    for (unsigned char byte : text) ids.push_back(byte);
  } else if (kind_ == "nucleotides") {
    for (char letter : text) {
      if (std::string_view(" \t\r\n").find(letter) != std::string_view::npos) continue;
      const char upper =
          letter >= 'a' && letter <= 'z' ? static_cast<char>(letter - 'a' + 'A') : letter;
      const std::size_t id = letters_.find(upper);
      if (id == std::string::npos)
        fail_usage("'{}' is not a nucleotide: the letters of this dataset are {}", letter,
                   letters_);
      ids.push_back(static_cast<std::int32_t>(id));
    }
  } else {
    constexpr const char* kSpace = " \t\r\n,";
    for (std::size_t begin = text.find_first_not_of(kSpace); begin != std::string::npos;) {
      const std::size_t end = std::min(text.find_first_of(kSpace, begin), text.size());
      ids.push_back(parse_id(text.substr(begin, end - begin)));
      begin = text.find_first_not_of(kSpace, end);
    }
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  std::string text;
  const std::size_t letters = kind_ == "bytes" ? 256 : letters_.size();
  for (std::int32_t id : ids) {
    if (kind_ == "ids") {
      if (!text.empty()) text += ' ';
      text += std::to_string(id);
      continue;
    }
    if (id < 0 || static_cast<std::size_t>(id) >= letters)
      fail("token id {} has no letter: this tokenizer ({}) has {}", id, kind_, letters);
    text += kind_ == "bytes" ? static_cast<char>(id) : letters_[static_cast<std::size_t>(id)];
  }
  return text;
}

std::int64_t Tokenizer::vocabulary() const {
  if (kind_ == "ids") return std::numeric_limits<std::int32_t>::max();
  return kind_ == "bytes" ? 256 : static_cast<std::int64_t>(letters_.size());
}

}  // namespace longspan::io
