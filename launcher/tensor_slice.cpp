#include "launcher/tensor_slice.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <vector>

#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0;;) {
    const auto end = text.find(separator, begin);
    parts.push_back(trimmed(text.substr(begin, end - begin)));
    if (end == std::string::npos) return parts;
    begin = end + 1;
  }
}

/// What all errors of one slice have in common.
struct Context {
  const std::string& slice;
  const std::string& name;
  const Shape& global;

  [[noreturn]] void refuse(const std::string& why) const {
    fail_usage("{}[{}]: {}: '{}' is {}; write for example '{}[0:4, -3:]'", name, slice, why, name,
               longspan::to_string(global), name);
  }
  std::int64_t number(const std::string& text) const {
    std::int64_t value = 0;
    const char* const end = text.data() + text.size();
    const char* const begin = text.data() + (text.starts_with('+') ? 1 : 0);
    const auto [rest, error] = std::from_chars(begin, end, value);
    if (error != std::errc() || rest != end || begin == end)
      refuse(fmt::format("'{}' is no whole number", text));
    return value;
  }
  /// One end of a range, clipped to the dim.
  std::int64_t end_of_range(const std::string& text, std::int64_t extent,
                            std::int64_t without) const {
    if (text.empty()) return without;
    const std::int64_t value = number(text);
    return std::clamp<std::int64_t>(value < 0 ? value + extent : value, 0, extent);
  }
};

}  // namespace

TensorRequest parse_request(const std::string& text) {
  const auto open = text.find('[');
  TensorRequest request{text.substr(0, open), std::nullopt};
  if (request.name.empty()) fail_usage("--tensor '{}': the name of a tensor is missing", text);
  if (open == std::string::npos) return request;
  if (!text.ends_with(']') || text.find('[', open + 1) != std::string::npos)
    fail_usage("--tensor '{}': write NAME[SLICE], for example '{}[0:4, -3:]'", text, request.name);
  request.slice = text.substr(open + 1, text.size() - open - 2);
  return request;
}

Shape TensorSlice::result_shape() const {
  Shape result;
  for (std::size_t d = 0; d < shape.size(); ++d)
    if (!dropped[d]) result.push_back(shape[d]);
  return result;
}

TensorSlice parse_slice(const std::string& slice, const std::string& name,
                        const Shape& global_shape) {
  const Context context{slice, name, global_shape};
  std::vector<std::string> items;
  if (!trimmed(slice).empty()) items = split(slice, ',');
  if (items.size() > 1 && items.back().empty()) items.pop_back();  // "[3,]"
  const auto dots = std::count(items.begin(), items.end(), "...");
  if (dots > 1) context.refuse("'...' may stand once");
  if (items.size() - static_cast<std::size_t>(dots) > global_shape.size())
    context.refuse(fmt::format("{} dims are given", items.size() - static_cast<std::size_t>(dots)));
  const std::size_t whole = global_shape.size() + static_cast<std::size_t>(dots) - items.size();
  auto at = std::find(items.begin(), items.end(), "...");
  if (at != items.end()) at = items.erase(at);
  items.insert(at, whole, ":");

  TensorSlice result{Shape(items.size()), Shape(items.size()), std::vector<bool>(items.size())};
  for (std::size_t d = 0; d < items.size(); ++d) {
    const std::int64_t extent = global_shape[d];
    const std::vector<std::string> ends = split(items[d], ':');
    if (ends.size() == 1) {
      const std::int64_t index = context.number(ends[0]);
      if (index < -extent || index >= extent)
        context.refuse(
            fmt::format("index {} is outside of dim {}, which has {}", index, d, extent));
      result.offset[d] = index < 0 ? index + extent : index;
      result.shape[d] = 1;
      result.dropped[d] = true;
      continue;
    }
    if (ends.size() > 3) context.refuse(fmt::format("'{}' is no range", items[d]));
    if (ends.size() == 3 && !ends[2].empty() && context.number(ends[2]) != 1)
      context.refuse(fmt::format("'{}' has a step, only steps of 1 are possible", items[d]));
    const std::int64_t begin = context.end_of_range(ends[0], extent, 0);
    const std::int64_t end = context.end_of_range(ends[1], extent, extent);
    result.offset[d] = begin;
    result.shape[d] = std::max<std::int64_t>(0, end - begin);
  }
  return result;
}

std::string to_string(const TensorSlice& slice) {
  std::string text;
  for (std::size_t d = 0; d < slice.shape.size(); ++d) {
    text += d == 0 ? "" : ", ";
    text += slice.dropped[d]
                ? fmt::format("{}", slice.offset[d])
                : fmt::format("{}:{}", slice.offset[d], slice.offset[d] + slice.shape[d]);
  }
  return "[" + text + "]";
}

void for_each_piece(const Shape& offset, const Shape& shape, std::int64_t most,
                    const std::function<void(const Shape&, const Shape&)>& visit) {
  for (const std::int64_t extent : shape)
    if (extent == 0) return;
  // As many of the last dims as fit are whole; the dim before them is cut, those before it advance
  // one by one.
  std::size_t whole_from = shape.size();
  std::int64_t inner = 1;
  while (whole_from > 0 && shape[whole_from - 1] <= most / inner) inner *= shape[--whole_from];
  if (whole_from == 0) return visit(offset, shape);
  const std::size_t cut = whole_from - 1;
  Shape at = offset, piece = shape;
  std::fill(piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(cut), 1);
  for (;;) {
    for (std::int64_t done = 0; done < shape[cut]; done += most / inner) {
      at[cut] = offset[cut] + done;
      piece[cut] = std::min(most / inner, shape[cut] - done);
      visit(at, piece);
    }
    std::size_t d = cut;
    while (d > 0 && ++at[d - 1] == offset[d - 1] + shape[d - 1]) {
      at[d - 1] = offset[d - 1];
      --d;
    }
    if (d == 0) return;
  }
}

}  // namespace longspan::launcher
