/// `longspan inspect A --diff B`: two checkpoints tensor by tensor, whatever their meshes and
/// shards. Nothing here communicates.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/terminal_style.hpp"
#include "parallel/array.hpp"

namespace longspan::launcher {

/// One tensor in both checkpoints. Numbers are set for kValues only, over all elements; an element
/// differs if its values do: -0 equals 0, and NaN equals NaN.
struct TensorDiff {
  enum class Kind { kEqual, kValues, kShape, kType, kOnlyFirst, kOnlySecond };
  std::string name;
  Kind kind = Kind::kEqual;
  DType dtype = DType::kF32, other_dtype = DType::kF32;  ///< kOnly...: both are that of the one
  Shape shape, other_shape;
  std::int64_t elements = 0, differing = 0;
  std::int64_t not_finite = 0;  ///< differing, and NaN or Inf in one of the two
  double largest = 0;           ///< max |a - b| where both are finite
  Shape largest_at;             ///< where; empty if nothing finite differs
  double squares = 0;           ///< sum (a - b)^2 where both are finite
  double first_squares = 0;     ///< sum a^2 over the finite a
  /// ||a - b|| / ||a||; infinite where a is 0 everywhere, and b is not.
  double relative_l2() const;
};

/// A fact or a setting that differs, as text.
struct FactDiff {
  std::string name, first, second;
};

struct CheckpointDiff {
  std::string first, second;        ///< paths
  std::vector<TensorDiff> tensors;  ///< in the order of the first, then those only in the second
  std::int64_t unread = 0;          ///< tensors taken as equal: equal blocks, types and hashes
  std::vector<FactDiff> place;      ///< step, tokens, data cursor, losses, tokenizer
  std::vector<FactDiff> made;       ///< mesh, shards, versions: how, not what
  std::vector<FactDiff> settings;   ///< of the configuration
  /// Every tensor is equal, and so is the place in the training: a run may go on from either.
  bool equal() const;
};

/// Reads both piece by piece: memory does not grow with the checkpoints. A tensor whose blocks and
/// stored hashes are the same in both is not read, unless `read_all`. Progress on stderr. Throws
/// Error (damaged) if one of the two cannot be read.
CheckpointDiff compare_checkpoints(const std::string& first, const std::string& second,
                                   bool read_all);

/// For people: what differs; with `unfold` every layer, and the tensors that do not.
std::string diff_text(const CheckpointDiff& diff, bool unfold, const Style& style);
nlohmann::ordered_json diff_json(const CheckpointDiff& diff);

}  // namespace longspan::launcher
