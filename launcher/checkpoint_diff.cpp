#include "launcher/checkpoint_diff.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <span>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/statistics.hpp"
#include "launcher/ini.hpp"
#include "launcher/progress.hpp"
#include "launcher/tensor_slice.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using io::CheckpointFacts;
using io::CheckpointReader;
using io::TensorEntry;
using Kind = TensorDiff::Kind;

constexpr std::int64_t kPieceElements = std::int64_t{4} << 20;  // at most so many at a time
constexpr std::size_t kChunk = 1 << 15;                         // numbers that stay in cache

/// Equal blocks with equal hashes: the bytes are the same without a look at them.
bool same_by_hash(const TensorEntry& a, const TensorEntry& b) {
  return a.dtype == b.dtype && std::equal(a.blocks.begin(), a.blocks.end(), b.blocks.begin(),
                                          b.blocks.end(), [](const auto& x, const auto& y) {
                                            return x.offset == y.offset && x.shape == y.shape &&
                                                   x.xxh3 == y.xxh3;
                                          });
}

/// Compares two pieces of equal shape and adds what is found to a TensorDiff.
class PieceComparison {
 public:
  PieceComparison(TensorDiff& diff, const TensorEntry& a, const TensorEntry& b)
      : diff_(diff), a_(a), b_(b) {}

  void add(CheckpointReader& first, CheckpointReader& second, const Shape& offset,
           const Shape& shape) {
    const auto count = static_cast<std::size_t>(element_count(shape));
    read(first, a_, offset, shape, bytes_a_);
    read(second, b_, offset, shape, bytes_b_);
    const std::size_t size_a = size_of(a_.dtype), size_b = size_of(b_.dtype);
    x_.resize(kChunk);
    y_.resize(kChunk);
    for (std::size_t begin = 0; begin < count; begin += kChunk) {
      const std::size_t n = std::min(kChunk, count - begin);
      const char *const a = &bytes_a_[begin * size_a], *const b = &bytes_b_[begin * size_b];
      io::element_values(a_.dtype, a, std::span(x_).first(n));
      for (std::size_t i = 0; i < n; ++i)
        if (std::isfinite(x_[i])) diff_.first_squares += x_[i] * x_[i];
      if (a_.dtype == b_.dtype && std::memcmp(a, b, n * size_a) == 0) continue;
      io::element_values(b_.dtype, b, std::span(y_).first(n));
      for (std::size_t i = 0; i < n; ++i)
        if (!same(a + i * size_a, b + i * size_b, i))
          differ(offset, shape, begin + i, x_[i], y_[i]);
    }
  }

 private:
  bool same(const char* a, const char* b, std::size_t i) const {
    // Neighbouring large integers are one and the same double.
    const bool wide = a_.dtype == DType::kI64 || a_.dtype == DType::kU64;
    if (wide && a_.dtype == b_.dtype) return std::memcmp(a, b, size_of(a_.dtype)) == 0;
    return x_[i] == y_[i] || (std::isnan(x_[i]) && std::isnan(y_[i]));
  }
  void differ(const Shape& offset, const Shape& shape, std::size_t element, double x, double y) {
    ++diff_.differing;
    const double apart = std::abs(x - y);
    if (!std::isfinite(apart)) {
      ++diff_.not_finite;
      return;
    }
    diff_.squares += apart * apart;
    if (apart > diff_.largest || diff_.largest_at.empty()) {
      diff_.largest = apart;
      diff_.largest_at = position(offset, shape, element);
    }
  }
  static void read(CheckpointReader& reader, const TensorEntry& tensor, const Shape& offset,
                   const Shape& shape, std::vector<char>& bytes) {
    bytes.resize(static_cast<std::size_t>(element_count(shape)) * size_of(tensor.dtype));
    reader.read({tensor.name, tensor.dtype, tensor.global_shape, offset, shape, bytes.data()});
  }
  static Shape position(const Shape& offset, const Shape& shape, std::size_t element) {
    Shape at = offset;
    auto rest = static_cast<std::int64_t>(element);
    for (std::size_t d = shape.size(); d-- > 0; rest /= shape[d]) at[d] += rest % shape[d];
    return at;
  }

  TensorDiff& diff_;
  const TensorEntry &a_, &b_;
  std::vector<char> bytes_a_, bytes_b_;
  std::vector<double> x_, y_;
};

class Comparison {
 public:
  Comparison(const std::string& first, const std::string& second, bool read_all)
      : a_(first), b_(second), read_all_(read_all) {
    diff_.first = first;
    diff_.second = second;
    // What is not read must at least be there.
    for (const std::string& path : {first, second})
      if (const std::string problem = io::why_incomplete(path); !problem.empty())
        fail_damaged("{}", problem);
  }

  CheckpointDiff run() {
    std::map<std::string, const TensorEntry*> others;
    for (const auto& tensor : b_.tensors()) others[tensor.name] = &tensor;
    for (const auto& tensor : a_.tensors()) total_ += element_count(tensor.global_shape);
    for (const auto& tensor : a_.tensors()) {
      const auto found = others.find(tensor.name);
      if (found == others.end()) {
        only(tensor, Kind::kOnlyFirst);
      } else {
        both(tensor, *found->second);
        others.erase(found);
      }
    }
    for (const auto& tensor : b_.tensors())
      if (others.contains(tensor.name)) only(tensor, Kind::kOnlySecond);
    facts();
    return std::move(diff_);
  }

 private:
  void only(const TensorEntry& tensor, Kind kind) {
    TensorDiff diff;
    diff.name = tensor.name;
    diff.kind = kind;
    diff.dtype = diff.other_dtype = tensor.dtype;
    diff.shape = diff.other_shape = tensor.global_shape;
    diff.elements = element_count(tensor.global_shape);
    diff_.tensors.push_back(std::move(diff));
  }

  void both(const TensorEntry& a, const TensorEntry& b) {
    TensorDiff diff;
    diff.name = a.name;
    diff.dtype = a.dtype;
    diff.other_dtype = b.dtype;
    diff.shape = a.global_shape;
    diff.other_shape = b.global_shape;
    diff.elements = element_count(a.global_shape);
    if (a.global_shape != b.global_shape) {
      diff.kind = Kind::kShape;
    } else if (!read_all_ && same_by_hash(a, b)) {
      ++diff_.unread;
    } else {
      PieceComparison comparison(diff, a, b);
      std::int64_t done = done_, covered = 0;
      // A block is read once and hashed while it fits; of a larger one less than a quarter at a
      // time, so that the reader does not read all of it for each piece.
      for (const auto& block : a.blocks) {
        const std::int64_t count = element_count(block.shape);
        covered += count;
        for_each_piece(block.offset, block.shape,
                       count <= kPieceElements ? count : std::min(kPieceElements, count / 5),
                       [&](const Shape& offset, const Shape& shape) {
                         comparison.add(a_, b_, offset, shape);
                         progress_.update("comparing", "elements", done += element_count(shape),
                                          total_);
                       });
      }
      if (covered != diff.elements)
        fail_damaged("{}: the shards hold {} of the {} elements of '{}'", diff_.first, covered,
                     diff.elements, a.name);
      if (diff.differing > 0) {
        diff.kind = Kind::kValues;
      } else if (a.dtype != b.dtype) {
        diff.kind = Kind::kType;
      }
    }
    done_ += diff.elements;
    diff_.tensors.push_back(std::move(diff));
  }

  void facts() {
    const CheckpointFacts &a = a_.facts(), &b = b_.facts();
    const auto add = [](std::vector<FactDiff>& list, const char* name, const auto& x,
                        const auto& y) {
      if (x != y) list.push_back({name, fmt::format("{}", x), fmt::format("{}", y)});
    };
    add(diff_.place, "step", a.step, b.step);
    add(diff_.place, "tokens seen", a.tokens_seen, b.tokens_seen);
    add(diff_.place, "seed", a.seed, b.seed);
    add(diff_.place, "next sample", a.next_sample, b.next_sample);
    add(diff_.place, "dataset", a.dataset_uuid, b.dataset_uuid);
    add(diff_.place, "tokenizer", a.tokenizer, b.tokenizer);
    if (a.loss_history != b.loss_history) {
      const auto last = [](const std::vector<float>& losses) {
        return losses.empty() ? "none" : fmt::format("{}", losses.back());
      };
      diff_.place.push_back({"last loss", last(a.loss_history), last(b.loss_history)});
    }
    const auto mesh = [](const CheckpointFacts& f) {
      return fmt::format("data {} x context {} x tensor {}", f.data, f.context, f.tensor);
    };
    add(diff_.made, "mesh", mesh(a), mesh(b));
    add(diff_.made, "shards", a_.shard_files().size(), b_.shard_files().size());
    add(diff_.made, "program", a.program_version, b.program_version);
    std::vector<std::string> ignored;
    std::map<std::string, std::string> others;
    for (const auto& entry : parse_ini_lines(b.config, "", ignored))
      others[entry.name] = entry.value;
    constexpr const char* kNone = "(not set)";
    for (const auto& entry : parse_ini_lines(a.config, "", ignored)) {
      const auto found = others.find(entry.name);
      if (found == others.end()) {
        diff_.settings.push_back({entry.name, entry.value, kNone});
        continue;
      }
      if (found->second != entry.value)
        diff_.settings.push_back({entry.name, entry.value, found->second});
      others.erase(found);
    }
    for (const auto& [name, value] : others) diff_.settings.push_back({name, kNone, value});
  }

  CheckpointReader a_, b_;
  bool read_all_;
  CheckpointDiff diff_;
  Progress progress_;
  std::int64_t total_ = 0, done_ = 0;
};

}  // namespace

double TensorDiff::relative_l2() const {
  if (squares == 0) return 0;
  return first_squares > 0 ? std::sqrt(squares / first_squares)
                           : std::numeric_limits<double>::infinity();
}

bool CheckpointDiff::equal() const {
  return place.empty() && std::all_of(tensors.begin(), tensors.end(),
                                      [](const TensorDiff& t) { return t.kind == Kind::kEqual; });
}

CheckpointDiff compare_checkpoints(const std::string& first, const std::string& second,
                                   bool read_all) {
  return Comparison(first, second, read_all).run();
}

}  // namespace longspan::launcher
