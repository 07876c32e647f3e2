#include "launcher/inspect_values.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "io/statistics.hpp"

namespace longspan::launcher {
namespace {

constexpr std::int64_t kPieceElements = 1 << 16;

template <class T>
T load(const void* element) {
  T value;
  std::memcpy(&value, element, sizeof value);
  return value;
}

/// Reads the slice piece by piece; use(offset, shape, bytes of the piece).
template <class Use>
void for_each_read(io::CheckpointReader& reader, const io::TensorEntry& tensor,
                   const TensorSlice& slice, Use&& use) {
  std::vector<char> bytes;
  for_each_piece(
      slice.offset, slice.shape, kPieceElements, [&](const Shape& offset, const Shape& shape) {
        bytes.resize(static_cast<std::size_t>(element_count(shape)) * size_of(tensor.dtype));
        reader.read({tensor.name, tensor.dtype, tensor.global_shape, offset, shape, bytes.data()});
        use(offset, shape, bytes.data());
      });
}

/// "[3, 40:48]": where some elements of a row are; `row` counts the rows of the piece.
std::string place(const Shape& offset, const Shape& shape, std::int64_t row, std::int64_t first,
                  std::int64_t count) {
  std::string text;
  for (std::size_t d = shape.size() - 1; d-- > 0;) {
    text = fmt::format("{}, ", offset[d] + row % shape[d]) + text;
    row /= shape[d];
  }
  const std::int64_t begin = offset.back() + first;
  return fmt::format("[{}{}:{}]", text, begin, begin + count);
}

}  // namespace

std::string value_text(DType dtype, const void* element) {
  if (dtype == DType::kU64) return fmt::format("{}", load<std::uint64_t>(element));
  if (dtype == DType::kI64) return fmt::format("{}", load<std::int64_t>(element));
  const double value = io::element_value(dtype, element);
  if (std::isnan(value)) return "nan";
  if (dtype == DType::kF32 || dtype == DType::kBF16)
    return fmt::format("{}", static_cast<float>(value));
  return fmt::format("{}", value);
}

void print_values(io::CheckpointReader& reader, const io::TensorEntry& tensor,
                  const TensorSlice& slice, std::size_t width, std::FILE* out) {
  const std::size_t element = size_of(tensor.dtype);
  fmt::print(out, "{}{}  {} {} of {}\n\n", tensor.name, to_string(slice), name_of(tensor.dtype),
             longspan::to_string(slice.result_shape()), longspan::to_string(tensor.global_shape));
  for_each_read(
      reader, tensor, slice, [&](const Shape& offset, const Shape& shape, const char* bytes) {
        const std::int64_t columns = shape.back(), rows = element_count(shape) / columns;
        std::vector<std::string> values;
        std::size_t widest = 0, label = 0;
        for (std::int64_t i = 0; i < rows * columns; ++i) {
          values.push_back(value_text(tensor.dtype, bytes + static_cast<std::size_t>(i) * element));
          widest = std::max(widest, values.back().size());
        }
        for (std::int64_t row = 0; row < rows; ++row) {
          label = std::max(label, place(offset, shape, row, 0, columns).size());
          if (width > 0)  // no part of a row has a longer one
            label = std::max(label, place(offset, shape, row, columns - 1, 1).size());
        }
        std::int64_t a_line = columns;
        if (width > label + 2)
          a_line = std::clamp<std::int64_t>(
              static_cast<std::int64_t>((width - label - 2) / (widest + 2)), 1, columns);
        for (std::int64_t row = 0; row < rows; ++row)
          for (std::int64_t first = 0; first < columns; first += a_line) {
            const std::int64_t count = std::min(a_line, columns - first);
            std::string line =
                fmt::format("  {:<{}}", place(offset, shape, row, first, count), label);
            for (std::int64_t c = first; c < first + count; ++c)
              line += fmt::format("  {:>{}}", values[static_cast<std::size_t>(row * columns + c)],
                                  widest);
            fmt::print(out, "{}\n", line);
          }
      });
}

void print_values_json(io::CheckpointReader& reader, const std::string& path,
                       const io::TensorEntry& tensor, const TensorSlice& slice, std::FILE* out) {
  const Shape shape = slice.result_shape();
  const nlohmann::ordered_json head = {{"kind", "tensor"},
                                       {"path", path},
                                       {"step", reader.facts().step},
                                       {"name", tensor.name},
                                       {"dtype", name_of(tensor.dtype)},
                                       {"global_shape", tensor.global_shape},
                                       {"slice", to_string(slice)},
                                       {"shape", shape}};
  std::string text = head.dump();
  text.back() = ',';  // was the closing brace
  fmt::print(out, "{}\"values\":", text);
  // A list of `n` elements opens before the first of each n and closes after the last.
  const std::int64_t total = element_count(slice.shape);
  std::vector<std::int64_t> lists;  // elements in each list, outermost first
  for (std::int64_t rest = total, d = 0; d < static_cast<std::int64_t>(shape.size()); ++d) {
    lists.push_back(rest);
    rest = shape[static_cast<std::size_t>(d)] == 0 ? 0 : rest / shape[static_cast<std::size_t>(d)];
  }
  std::int64_t at = 0;
  for_each_read(reader, tensor, slice, [&](const Shape&, const Shape& piece, const char* bytes) {
    std::string piece_text;
    for (std::int64_t i = 0; i < element_count(piece); ++i, ++at) {
      if (at > 0) piece_text += ",";
      for (const std::int64_t n : lists)
        if (at % n == 0) piece_text += '[';
      const std::string value =
          value_text(tensor.dtype, bytes + static_cast<std::size_t>(i) * size_of(tensor.dtype));
      piece_text += value.find_first_of("ni") == std::string::npos ? value : '"' + value + '"';
      for (const std::int64_t n : lists)
        if ((at + 1) % n == 0) piece_text += ']';
    }
    fmt::print(out, "{}", piece_text);
  });
  fmt::print(out, "{}}}\n", total > 0 ? "" : nlohmann::json(Shape{}).dump());
}

}  // namespace longspan::launcher
