#include "model/rotary.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace longspan::model {

RotaryTable::RotaryTable(const std::vector<std::int32_t>& positions, std::int64_t head_size,
                         double theta, Backend backend)
    : head_size_(head_size),
      rows_(positions.size()),
      cos_sin_(backend.device, static_cast<std::int64_t>(positions.size()), head_size),
      backend_(backend) {
  std::iota(rows_.begin(), rows_.end(), 0);
  const std::int64_t half = head_size / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_size));
    for (std::size_t t = 0; t < positions.size(); ++t) {
      const double angle = std::max(positions[t], 0) * frequency;
      float* row = cos_sin_.data() + static_cast<std::int64_t>(t) * head_size;
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void RotaryTable::apply(View<float> qkv, std::int64_t heads, bool inverse) const {
  RotaryArgs args;
  args.rows = qkv.rows(), args.heads = heads, args.head_size = head_size_,
  args.row_stride = qkv.cols();
  args.x = qkv.data();
  args.positions = rows_.data(), args.tokens = static_cast<std::int64_t>(rows_.size());
  args.cos_sin = cos_sin_.data();
  args.inverse = inverse;
  backend_.kernels.rotary(args, backend_.stream);
}

}  // namespace longspan::model
