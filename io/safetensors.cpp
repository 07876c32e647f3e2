#include "io/safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::io {
namespace {

using json = nlohmann::json;
using Event = json::parse_event_t;

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kMostDims = 16, kLongestName = 4096;
constexpr std::int64_t kPiece = std::int64_t{1} << 20;  // elements converted at a time

/// Bits of an element; 0: unknown. Types below a byte are not here: nothing we read has them.
std::int64_t element_bytes(std::string_view dtype) {
  struct Known {
    std::string_view name;
    std::int64_t bytes;
  };
  static constexpr std::array<Known, 15> all = {{{"F64", 8},
                                                 {"F32", 4},
                                                 {"F16", 2},
                                                 {"BF16", 2},
                                                 {"I64", 8},
                                                 {"I32", 4},
                                                 {"I16", 2},
                                                 {"I8", 1},
                                                 {"U64", 8},
                                                 {"U32", 4},
                                                 {"U16", 2},
                                                 {"U8", 1},
                                                 {"BOOL", 1},
                                                 {"F8_E4M3", 1},
                                                 {"F8_E5M2", 1}}};
  for (const Known& known : all)
    if (known.name == dtype) return known.bytes;
  return 0;
}

/// A name as it may stand in a message of one line.
std::string shown(const std::string& name) {
  std::string text = name.substr(0, 80);
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = '?';
  return text;
}

/// Takes the parser's events. What is complete is checked and dropped, so that a header costs
/// little more memory than its text, and what is nested too deep is refused before it is built.
class HeaderBuilder {
 public:
  explicit HeaderBuilder(const std::string& where) : where_(where) {}

  bool operator()(int depth, Event event, json& value) {
    // {"name": {"shape": [1]}}: whatever opens at depth 3 is deeper than any header.
    if ((event == Event::object_start || event == Event::array_start) && depth > 2)
      fail_damaged("{}: '{}' is nested deeper than a header can be", where_, shown(name_));
    if (depth == 0 && event == Event::array_start)
      fail_damaged("{}: it is a list where a JSON object is expected", where_);
    if (event == Event::key && depth == 1) begin_entry(value.get<std::string>());
    if (event == Event::key && depth == 2) {
      const auto key = value.get<std::string>();
      if (!keys_.insert(key).second)
        fail_damaged("{}: '{}' has \"{}\" twice", where_, shown(name_), shown(key));
    }
    if (event == Event::value && depth == 1)
      fail_damaged("{}: '{}' is no JSON object", where_, shown(name_));
    if (event == Event::value && depth == 3 && ++numbers_ > 2 * kMostDims)
      fail_damaged("{}: '{}' has too many dims", where_, shown(name_));
    if (event == Event::array_start && depth == 1)
      fail_damaged("{}: '{}' is no JSON object", where_, shown(name_));
    if (event != Event::object_end || depth != 1) return true;
    if (name_ == "__metadata__")
      take_metadata(value);
    else
      take_tensor(value);
    return false;  // nobody needs it any more
  }

  SafetensorsHeader take() { return std::move(header_); }

 private:
  void begin_entry(std::string name) {
    if (name.empty() || name.size() > kLongestName || name.find('\0') != std::string::npos)
      fail_damaged("{}: '{}' cannot be the name of a tensor", where_, shown(name));
    if (!names_.insert(name).second)
      fail_damaged("{}: two tensors are called '{}'", where_, shown(name));
    name_ = std::move(name);
    keys_.clear();
    numbers_ = 0;
  }

  void take_metadata(const json& value) {
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string())
        fail_damaged("{}: '{}' of the metadata is no text", where_, shown(key));
      header_.metadata[key] = text.get<std::string>();
    }
  }

  std::vector<std::int64_t> numbers_of(const json& value, const char* key) {
    const auto found = value.find(key);
    if (found == value.end() || !found->is_array())
      fail_damaged("{}: '{}' has no list \"{}\"", where_, shown(name_), key);
    std::vector<std::int64_t> result;
    for (const json& item : *found) {
      if (!item.is_number_unsigned() || item.get<std::uint64_t>() > std::uint64_t{kMost})
        fail_damaged("{}: \"{}\" of '{}' has something else than whole numbers below 2^63", where_,
                     key, shown(name_));
      result.push_back(item.get<std::int64_t>());
    }
    return result;
  }

  void take_tensor(const json& value) {
    SafetensorsTensor tensor;
    tensor.name = name_;
    const auto dtype = value.find("dtype");
    if (dtype == value.end() || !dtype->is_string())
      fail_damaged("{}: '{}' has no \"dtype\"", where_, shown(name_));
    tensor.dtype = dtype->get<std::string>();
    const std::int64_t item = element_bytes(tensor.dtype);
    if (item == 0)
      fail_damaged("{}: '{}' is of the unknown type '{}'", where_, shown(name_),
                   shown(tensor.dtype));
    tensor.shape = numbers_of(value, "shape");
    if (tensor.shape.size() > kMostDims)
      fail_damaged("{}: '{}' has {} dims", where_, shown(name_), tensor.shape.size());
    const auto offsets = numbers_of(value, "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1])
      fail_damaged("{}: '{}' needs two \"data_offsets\", the first not above the second", where_,
                   shown(name_));
    tensor.begin = offsets[0], tensor.end = offsets[1];
    std::int64_t bytes = item;
    for (const std::int64_t extent : tensor.shape)
      if (__builtin_mul_overflow(bytes, extent, &bytes))
        fail_damaged("{}: '{}' {} has more than 2^63 bytes", where_, shown(name_),
                     to_string(tensor.shape));
    if (bytes != tensor.end - tensor.begin)
      fail_damaged("{}: '{}' {} {} has {} bytes, its offsets [{}, {}] leave room for {}", where_,
                   shown(name_), tensor.dtype, to_string(tensor.shape), bytes, tensor.begin,
                   tensor.end, tensor.end - tensor.begin);
    header_.tensors.push_back(std::move(tensor));
  }

  const std::string& where_;
  SafetensorsHeader header_;
  std::set<std::string> names_;  // all so far
  std::string name_;             // whose object is being parsed
  std::set<std::string> keys_;   // in it
  std::size_t numbers_ = 0;      // in its lists
};

void require_cover(const SafetensorsHeader& header, std::int64_t data_bytes,
                   const std::string& where) {
  std::int64_t at = 0;
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.begin != at)
      fail_damaged(
          "{}: '{}' begins at byte {} of the data, {} at {}", where, shown(tensor.name),
          tensor.begin,
          tensor.begin < at ? "in another tensor, which ends" : "behind a hole that begins", at);
    if (tensor.end > data_bytes)
      fail_damaged("{}: '{}' ends at byte {} of {} bytes of data", where, shown(tensor.name),
                   tensor.end, data_bytes);
    at = tensor.end;
  }
  if (at != data_bytes)
    fail_damaged("{}: {} bytes of data follow the header, its tensors have {}", where, data_bytes,
                 at);
}

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent > 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float small = std::ldexp(static_cast<float>(mantissa), -24);  // zero and subnormals
  return sign != 0 ? -small : small;
}

std::uint16_t round_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  // Rounding could turn a NaN into an infinity.
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <class Stored, class Convert>
void read_converted(const RawFile& file, std::int64_t at, std::int64_t count, float* values,
                    Convert&& convert) {
  std::vector<Stored> buffer(static_cast<std::size_t>(std::min(kPiece, count)));
  for (std::int64_t done = 0; done < count; done += kPiece) {
    const std::int64_t now = std::min(kPiece, count - done);
    const auto size = static_cast<std::int64_t>(sizeof(Stored));
    file.read(buffer.data(), now * size, at + done * size);
    std::transform(buffer.begin(), buffer.begin() + now, values + done, convert);
  }
}

/// The whole of a small file from others.
json parse_json_file(const std::string& path) {
  const std::int64_t size = file_size(path);
  if (size > kLargestSafetensorsHeader)
    fail_damaged("{}: {} bytes are more than such a file can have", path, size);
  std::string text(static_cast<std::size_t>(std::max<std::int64_t>(size, 0)), '\0');
  RawFile::open(path, RawFile::Mode::kRead).read(text.data(), size, 0);
  const auto shallow = [&](int depth, Event event, json&) {
    if ((event == Event::object_start || event == Event::array_start) && depth > 32)
      fail_damaged("{}: it is nested deeper than 32 levels", path);
    return true;
  };
  json parsed = json::parse(text, shallow, /*allow_exceptions=*/false);
  if (!parsed.is_object()) fail_damaged("{}: it is no JSON object", path);
  return parsed;
}

void require_bare_name(const std::string& index, const std::string& file) {
  if (file.empty() || file.find('/') != std::string::npos || file.find('\0') != std::string::npos ||
      file == "." || file == "..")
    fail_damaged("{}: '{}' is not the name of a file in its folder", index, shown(file));
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view header, std::int64_t data_bytes,
                                           const std::string& where) {
  if (static_cast<std::int64_t>(header.size()) > kLargestSafetensorsHeader)
    fail_damaged("{}: {} bytes are more than the {} that a header may have", where, header.size(),
                 kLargestSafetensorsHeader);
  if (header.empty() || header.front() != '{')
    fail_damaged("{}: it does not begin with '{{'", where);
  HeaderBuilder builder(where);
  const json parsed = json::parse(
      header.begin(), header.end(),
      [&](int depth, Event event, json& value) { return builder(depth, event, value); },
      /*allow_exceptions=*/false);
  if (parsed.is_discarded()) fail_damaged("{}: it is no valid JSON", where);
  SafetensorsHeader result = builder.take();
  std::sort(result.tensors.begin(), result.tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  require_cover(result, data_bytes, where);
  return result;
}

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(RawFile::open(path, RawFile::Mode::kRead)) {
  const std::int64_t size = file_.size();
  if (size < 8)
    fail_damaged("{}: {} bytes are too few for a safetensors file: copy it again", path, size);
  std::uint64_t length = 0;
  file_.read(&length, sizeof length, 0);
  if (length > static_cast<std::uint64_t>(kLargestSafetensorsHeader))
    fail_damaged("{}: its header would have {} bytes, {} are allowed: this is no safetensors file",
                 path, length, kLargestSafetensorsHeader);
  data_begin_ = 8 + static_cast<std::int64_t>(length);
  if (data_begin_ > size)
    fail_damaged("{}: its header has {} bytes, the file {}: it is truncated, copy it again", path,
                 length, size);
  std::string text(length, '\0');
  file_.read(text.data(), static_cast<std::int64_t>(length), 8);
  header_ = parse_safetensors_header(text, size - data_begin_, path);
}

void SafetensorsFile::read(const SafetensorsTensor& tensor, std::int64_t first, std::int64_t count,
                           float* values) const {
  const std::int64_t item = element_bytes(tensor.dtype);
  if (first < 0 || count < 0 || first + count > (tensor.end - tensor.begin) / item)
    fail("{}: elements [{}, {}) are not inside '{}'", path(), first, first + count, tensor.name);
  const std::int64_t at = data_begin_ + tensor.begin + first * item;
  if (tensor.dtype == "F32") {
    file_.read(values, count * item, at);
  } else if (tensor.dtype == "BF16") {
    read_converted<std::uint16_t>(file_, at, count, values, [](std::uint16_t v) {
      return std::bit_cast<float>(static_cast<std::uint32_t>(v) << 16);
    });
  } else if (tensor.dtype == "F16") {
    read_converted<std::uint16_t>(file_, at, count, values, half_to_float);
  } else if (tensor.dtype == "F64") {
    read_converted<double>(file_, at, count, values, [](double v) { return float(v); });
  } else {
    fail_damaged("{}: '{}' is of type {}: weights are F32, BF16, F16 or F64", path(),
                 shown(tensor.name), tensor.dtype);
  }
}

SafetensorsFolder::SafetensorsFolder(const std::string& folder) : folder_(folder) {
  const std::string single = folder + "/model.safetensors", index = single + ".index.json";
  std::map<std::string, std::string> expected;  // tensor -> file, of an index
  std::vector<std::string> names;
  if (path_exists(single)) {
    names.push_back("model.safetensors");
  } else if (path_exists(index)) {
    const json parsed = parse_json_file(index);
    const auto map = parsed.find("weight_map");
    if (map == parsed.end() || !map->is_object() || map->empty())
      fail_damaged("{}: it has no \"weight_map\"", index);
    std::set<std::string> unique;
    for (const auto& [tensor, file] : map->items()) {
      if (!file.is_string()) fail_damaged("{}: '{}' is in no file", index, shown(tensor));
      require_bare_name(index, file.get<std::string>());
      expected[tensor] = file.get<std::string>();
      unique.insert(expected[tensor]);
    }
    names.assign(unique.begin(), unique.end());
  } else {
    fail_damaged(
        "{}: neither model.safetensors nor model.safetensors.index.json is there: save the model "
        "with save_pretrained(..., safe_serialization=True)",
        folder);
  }
  for (const std::string& name : names) {
    const SafetensorsFile& file = files_.emplace_back(folder + "/" + name);
    const auto& tensors = file.header().tensors;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::string& tensor = tensors[i].name;
      const auto wanted = expected.find(tensor);
      if (!expected.empty() && (wanted == expected.end() || wanted->second != name))
        fail_damaged("{}: it holds '{}', which {} does not say", file.path(), shown(tensor), index);
      places_[tensor] = {files_.size() - 1, i};
    }
  }
  for (const auto& [tensor, file] : expected)
    if (!places_.contains(tensor))
      fail_damaged("{}/{}: '{}' should be in it", folder, file, shown(tensor));
}

std::vector<std::string> SafetensorsFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

const SafetensorsTensor* SafetensorsFolder::find(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) return nullptr;
  return &files_[found->second.file].header().tensors[found->second.tensor];
}

void SafetensorsFolder::read(const std::string& name, std::int64_t first, std::int64_t count,
                             float* values) const {
  const auto found = places_.find(name);
  if (found == places_.end()) fail("{}: there is no tensor '{}'", folder_, name);
  const SafetensorsFile& file = files_[found->second.file];
  file.read(file.header().tensors[found->second.tensor], first, count, values);
}

namespace {

RawFile create_file(const std::string& path) {
  std::ofstream(path, std::ios::binary | std::ios::trunc);  // open() says why it cannot be written
  return RawFile::open(path, RawFile::Mode::kWrite);
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<Tensor>& tensors,
                                     DType dtype,
                                     const std::map<std::string, std::string>& metadata)
    : dtype_(dtype), file_(create_file(path)) {
  const auto item = static_cast<std::int64_t>(size_of(dtype));
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::int64_t bytes = 0;
  for (const Tensor& tensor : tensors) {
    begin_.push_back(bytes);
    const std::int64_t end = bytes + element_count(tensor.shape) * item;
    header[tensor.name] = {{"dtype", dtype == DType::kBF16 ? "BF16" : "F32"},
                           {"shape", tensor.shape},
                           {"data_offsets", {bytes, end}}};
    bytes = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // so that the data is aligned
  const std::uint64_t length = text.size();
  const std::int64_t data_begin = 8 + static_cast<std::int64_t>(length);
  for (std::int64_t& begin : begin_) begin += data_begin;
  file_.reserve(data_begin + bytes);
  file_.write(&length, sizeof length, 0);
  file_.write(text.data(), static_cast<std::int64_t>(text.size()), 8);
}

void SafetensorsWriter::write(std::size_t tensor, std::int64_t first, std::int64_t count,
                              const float* values) {
  const auto item = static_cast<std::int64_t>(size_of(dtype_));
  const std::int64_t at = begin_[tensor] + first * item;
  if (dtype_ == DType::kF32) return file_.write(values, count * item, at);
  rounded_.resize(std::max(rounded_.size(), static_cast<std::size_t>(count)));
  std::transform(values, values + count, rounded_.begin(), round_to_bf16);
  file_.write(rounded_.data(), count * item, at);
}

void SafetensorsWriter::close() {
  file_.sync();
  file_.close();
}

}  // namespace longspan::io
