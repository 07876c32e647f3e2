/// Text that is the same on every machine and for ever: what a test learns from it does not change
/// with the sources around it.
#pragma once

#include <cstddef>
#include <random>
#include <string>

namespace longspan::testing_support {

/// At least `bytes` of made-up sentences, one a line. std::mt19937's numbers are fixed by the
/// standard; distributions are not, so none is used.
inline std::string sample_text(std::size_t bytes, unsigned seed = 1) {
  constexpr const char* kWords[] = {
      "the",   "a",     "of",    "and",    "river",   "stone",   "light", "over",    "under",
      "wind",  "seven", "keeps", "turns",  "slowly",  "against", "north", "measure", "signal",
      "grain", "field", "holds", "answer", "between", "water",   "night", "every",   "winter"};
  constexpr std::size_t kCount = sizeof(kWords) / sizeof(kWords[0]);
  std::mt19937 random(seed);
  std::string text;
  while (text.size() < bytes) {
    const std::size_t words = 4 + random() % 9;
    for (std::size_t w = 0; w < words; ++w) {
      if (w > 0) text += ' ';
      // The square makes the first words of the list the frequent ones.
      const std::size_t r = random() % (kCount * kCount);
      std::size_t index = 0;
      while ((index + 1) * (index + 1) <= r) ++index;
      text += kWords[kCount - 1 - index];
    }
    text += ".\n";
  }
  return text;
}

}  // namespace longspan::testing_support
