#include "model/rotary.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

namespace longspan::model {

RotaryTable::RotaryTable(const std::vector<std::int32_t>& positions, std::int64_t head_size,
                         double theta, Backend backend)
    : head_size_(head_size),
      cos_sin_(backend.device, static_cast<std::int64_t>(positions.size()), head_size),
      backend_(backend) {
  std::vector<std::int32_t> rows(positions.size());
  std::iota(rows.begin(), rows.end(), 0);
  rows_ = {backend.device, backend.stream, std::move(rows)};
  write_from_host(backend.device, backend.stream, cos_sin_.view(), [&](View<float> table) {
    const std::int64_t half = head_size / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      const double frequency =
          std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_size));
      for (std::size_t t = 0; t < positions.size(); ++t) {
        const double angle = std::max(positions[t], 0) * frequency;
        float* row = table.row(static_cast<std::int64_t>(t));
        row[i] = static_cast<float>(std::cos(angle));
        row[half + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void RotaryTable::apply(View<float> qkv, std::int64_t heads, bool inverse) const {
  RotaryArgs args;
  args.rows = qkv.rows(), args.heads = heads, args.head_size = head_size_,
  args.row_stride = qkv.cols();
  args.x = qkv.data();
  args.positions = rows_.data(), args.tokens = rows_.size();
  args.cos_sin = cos_sin_.data();
  args.inverse = inverse;
  backend_.kernels.rotary(args, backend_.stream);
}

}  // namespace longspan::model
