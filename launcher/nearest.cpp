#include <algorithm>
#include <numeric>

#include "launcher/options.hpp"

namespace longspan::launcher {
namespace {

/// Optimal string alignment distance: insertions, deletions, substitutions, and neighbours that changed places.
std::size_t distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> before, previous(b.size() + 1), row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before = std::move(previous);
    previous = row;
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row.back();
}

std::string key_of(const std::string& name) { return name.substr(name.find('.') + 1); }

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  // Further away it is another word, not a misspelling.
  const std::size_t limit = std::max<std::size_t>(2, key_of(word).size() / 3);
  std::size_t best_distance = limit + 1;
  std::string best;
  for (const std::string& candidate : candidates) {
    std::size_t d = distance(word, candidate);
    if (candidate.find('.') != std::string::npos) d = std::min(d, distance(key_of(word), key_of(candidate)) + 1);
    if (d < best_distance) {
      best_distance = d;
      best = candidate;
    }
  }
  return best;
}

}  // namespace longspan::launcher
