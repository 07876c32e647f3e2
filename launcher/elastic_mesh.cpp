#include "launcher/elastic_mesh.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

bool fits(const RunConfig& c, const MeshShape& shape) {
  return tensor_problems(c.model, shape.tensor).empty() &&
         shape.context <= c.data.sequence_length &&
         c.train.global_batch % (c.train.micro_batch * shape.data) == 0;
}

std::vector<MeshShape> fitting(const RunConfig& c, int ranks) {
  std::vector<MeshShape> found;
  for (int tensor = 1; tensor <= ranks; ++tensor) {
    if (ranks % tensor != 0) continue;
    const int rest = ranks / tensor;
    for (int context = 1; context <= rest; ++context) {
      const MeshShape shape{rest / context, context, tensor};
      if (rest % context == 0 && fits(c, shape)) found.push_back(shape);
    }
  }
  return found;
}

/// How far `value` is from what was asked for; 0 asked for nothing.
double distance(int value, int asked) {
  return asked == 0 ? 0.0 : std::abs(std::log(static_cast<double>(value) / asked));
}

std::string axis(const char* name, int now, int asked) {
  if (asked == 0 || now == asked) return fmt::format("{}={}", name, now);
  return fmt::format("{}={} instead of {}", name, now, asked);
}

}  // namespace

MeshChoice choose_mesh(const RunConfig& c, int ranks) {
  if (!c.mesh.elastic) return {resolve_mesh(c.mesh, ranks)};
  try {
    const MeshShape shape = resolve_mesh(c.mesh, ranks);
    if (fits(c, shape)) return {shape};
  } catch (const Error&) {
    // Not with these ranks: another one.
  }
  const auto shapes = fitting(c, ranks);
  if (shapes.empty()) {
    std::vector<std::string> others;
    int fewer = ranks - 1;
    while (fewer > 0 && fitting(c, fewer).empty()) --fewer;
    for (const MeshShape& shape : fitting(c, fewer)) others.push_back(to_string(shape));
    fail_usage(
        "mesh.elastic=on: no mesh of {} rank{} fits data.sequence-length={} and "
        "train.global-batch={} in micro-batches of {}: {}",
        ranks, ranks == 1 ? "" : "s", c.data.sequence_length, c.train.global_batch,
        c.train.micro_batch,
        others.empty() ? "none of fewer does either: set train.global-batch to a multiple of "
                         "train.micro-batch"
                       : fmt::format("start {} ({})", fewer, fmt::join(others, ", or ")));
  }
  const MeshShape best =
      *std::min_element(shapes.begin(), shapes.end(), [&](const MeshShape& a, const MeshShape& b) {
        const auto rank_of = [&](const MeshShape& s) {
          return std::tuple(distance(s.tensor, c.mesh.tensor), -s.tensor,
                            distance(s.context, c.mesh.context), -s.context);
        };
        return rank_of(a) < rank_of(b);
      });
  return {best, fmt::format("mesh.elastic: {} rank{}: {}, {}, {}; the global batch stays {}, {} "
                            "micro-batches for each data rank",
                            ranks, ranks == 1 ? "" : "s", axis("mesh.data", best.data, c.mesh.data),
                            axis("mesh.context", best.context, c.mesh.context),
                            axis("mesh.tensor", best.tensor, c.mesh.tensor), c.train.global_batch,
                            c.train.global_batch / (c.train.micro_batch * best.data))};
}

}  // namespace longspan::launcher
