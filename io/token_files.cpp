#include "io/token_files.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "io/dataset_layout.hpp"
#include "io/file.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

constexpr std::string_view kNpyMagic("\x93NUMPY", 6);
constexpr std::string_view kMegatronMagic("MMIDIDX\0\0", 9);
constexpr std::int64_t kMegatronHeader = 34;  // magic, version u64, type u8, two counts u64
constexpr std::int64_t kLlmcHeader = 256 * 4;
constexpr std::int32_t kLlmcMagic16 = 20240520, kLlmcMagic32 = 20240801;
constexpr std::int32_t kLlmcVersion16 = 1, kLlmcVersion32 = 7;

template <class T>
T number_at(std::string_view bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

/// Reads Python's {'descr': '<u2', 'fortran_order': False, 'shape': (12,), } as far as numpy writes
/// it: these three keys in any order, no nesting.
class NpyDictionary {
 public:
  NpyDictionary(const std::string& path, std::string_view text) : path_(path), text_(text) {
    expect('{');
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr" && descr.empty())
        descr = quoted();
      else if (key == "fortran_order" && !order_seen_)
        read_order();
      else if (key == "shape" && !shape)
        read_shape();
      else
        fail_here();
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size() || descr.empty() || !order_seen_ || !shape) fail_here();
  }

  std::string descr;
  std::optional<std::vector<std::int64_t>> shape;

 private:
  [[noreturn]] void fail_here() const {
    fail_damaged(
        "{}: its NumPy header is not understood at '{}': expected descr, fortran_order "
        "and shape of a plain array",
        path_, text_.substr(std::min(at_, text_.size()), 40));
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool accept(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail_here();
  }
  std::string quoted() {
    skip_space();
    if (at_ == text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) fail_here();
    const char quote = text_[at_];
    const std::size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) fail_here();
    const std::string word(text_.substr(at_ + 1, end - at_ - 1));
    at_ = end + 1;
    return word;
  }
  void read_order() {
    order_seen_ = true;
    skip_space();
    // Of one dim both orders are the same.
    for (const std::string_view word : {"False", "True"})
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return;
      }
    fail_here();
  }
  void read_shape() {
    shape.emplace();
    expect('(');
    while (!accept(')')) {
      skip_space();
      std::int64_t extent = -1;
      const char* const end = text_.data() + text_.size();
      const auto [rest, error] = std::from_chars(text_.data() + at_, end, extent);
      if (error != std::errc() || extent < 0 || shape->size() == 32) fail_here();
      at_ = static_cast<std::size_t>(rest - text_.data());
      shape->push_back(extent);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
  }

  const std::string& path_;
  std::string_view text_;
  std::size_t at_ = 0;
  bool order_seen_ = false;
};

/// Throws unless `array` ends where the file does.
void require_size(const std::string& path, const TokenArray& array, std::int64_t file_bytes) {
  const auto bytes = checked_bytes({array.tokens}, array.width);
  if (!bytes || array.offset > file_bytes || *bytes != file_bytes - array.offset)
    fail_damaged(
        "{}: its header claims {} tokens of {} bytes behind byte {}, the file has {} "
        "bytes: it is damaged or cut off",
        path, array.tokens, array.width, array.offset, file_bytes);
}

}  // namespace

std::string_view name_of(TokenFileFormat format) {
  constexpr std::string_view kNames[] = {"raw", "npy", "llmc", "megatron"};
  return kNames[static_cast<int>(format)];
}

TokenArray parse_npy_header(const std::string& path, std::string_view head,
                            std::int64_t file_bytes) {
  if (head.size() < 10 || !head.starts_with(kNpyMagic))
    fail_damaged("{}: not a NumPy file: it does not begin with \\x93NUMPY", path);
  const int version = static_cast<unsigned char>(head[6]);
  if (version < 1 || version > 3)
    fail_damaged("{}: NumPy file format version {}.{}, this program reads 1 to 3", path, version,
                 static_cast<unsigned char>(head[7]));
  const std::size_t begin = version == 1 ? 10 : 12;
  if (head.size() < begin) fail_damaged("{}: its NumPy header is cut off", path);
  const std::uint32_t length =
      version == 1 ? number_at<std::uint16_t>(head, 8) : number_at<std::uint32_t>(head, 8);
  if (begin + length > static_cast<std::size_t>(kTokenHeaderBytes))
    fail_damaged("{}: claims a NumPy header of {} bytes, at most {} are read", path, length,
                 kTokenHeaderBytes - static_cast<std::int64_t>(begin));
  if (begin + length > head.size()) fail_damaged("{}: its NumPy header is cut off", path);
  const NpyDictionary dictionary(path, head.substr(begin, length));
  const std::string& type = dictionary.descr;
  const bool integer = type.size() == 3 && (type[1] == 'u' || type[1] == 'i') &&
                       (type[2] == '1' || type[2] == '2' || type[2] == '4' || type[2] == '8');
  if (!integer || (type[0] != '<' && type[0] != '|'))
    fail_damaged(
        "{}: holds elements of NumPy type '{}': token ids are little-endian integers; "
        "save array.astype('<u4')",
        path, type);
  if (dictionary.shape->size() != 1)
    fail_damaged("{}: holds an array of {} dims {}: token ids are one; save array.reshape(-1)",
                 path, dictionary.shape->size(), to_string(*dictionary.shape));
  const TokenArray array{static_cast<std::int64_t>(begin + length), dictionary.shape->front(),
                         type[2] - '0', type[1] == 'i'};
  require_size(path, array, file_bytes);
  return array;
}

TokenArray parse_llmc_header(const std::string& path, std::string_view head,
                             std::int64_t file_bytes) {
  if (head.size() < static_cast<std::size_t>(kLlmcHeader))
    fail_damaged("{}: too short for the header of llm.c, {} bytes", path, kLlmcHeader);
  const auto magic = number_at<std::int32_t>(head, 0);
  const auto version = number_at<std::int32_t>(head, 4);
  if (magic != kLlmcMagic16 && magic != kLlmcMagic32)
    fail_damaged("{}: not a token file of llm.c: it begins with {}, not {} or {}", path, magic,
                 kLlmcMagic16, kLlmcMagic32);
  const bool wide = magic == kLlmcMagic32;
  if (version != (wide ? kLlmcVersion32 : kLlmcVersion16))
    fail_damaged("{}: llm.c token file {} of version {}, this program reads version {}", path,
                 magic, version, wide ? kLlmcVersion32 : kLlmcVersion16);
  const TokenArray array{kLlmcHeader, number_at<std::int32_t>(head, 8), wide ? 4 : 2, false};
  require_size(path, array, file_bytes);
  return array;
}

MegatronIndex parse_megatron_index(const std::string& path, const ReadAt& read,
                                   std::int64_t idx_bytes, std::int64_t bin_bytes) {
  std::string head(static_cast<std::size_t>(std::min(idx_bytes, kMegatronHeader)), '\0');
  read(head.data(), static_cast<std::int64_t>(head.size()), 0);
  if (idx_bytes < kMegatronHeader || !head.starts_with(kMegatronMagic))
    fail_damaged("{}: not an index of Megatron: it does not begin with MMIDIDX", path);
  const auto version = number_at<std::uint64_t>(head, 9);
  if (version != 1)
    fail_damaged("{}: Megatron index version {}, this program reads version 1", path, version);
  const int code = static_cast<unsigned char>(head[17]);
  MegatronIndex index;
  TokenArray& array = index.array;
  switch (code) {  // 6 and 7 are floats
    case 1:
    case 2:
      array.width = 1;
      break;
    case 3:
    case 8:
      array.width = 2;
      break;
    case 4:
      array.width = 4;
      break;
    case 5:
      array.width = 8;
      break;
    default:
      fail_damaged("{}: holds elements of Megatron's type {}: token ids are integers, 1 to 5 or 8",
                   path, code);
  }
  array.is_signed = code != 1 && code != 8;
  const auto sequences = number_at<std::uint64_t>(head, 18);
  const auto borders = number_at<std::uint64_t>(head, 26);
  // Lengths i32, pointers i64, document borders i64; then, of multimodal data, modes i8.
  const auto rest = static_cast<std::uint64_t>(idx_bytes - kMegatronHeader);
  const bool fits = sequences <= rest / 12 && borders <= (rest - sequences * 12) / 8;
  const std::uint64_t tables = fits ? sequences * 12 + borders * 8 : 0;
  if (!fits || (rest != tables && rest != tables + sequences))
    fail_damaged(
        "{}: claims {} sequences and {} document borders, its {} bytes hold others: it is "
        "damaged or cut off",
        path, sequences, borders, idx_bytes);

  constexpr std::uint64_t kRows = 1 << 16;  // tables are read a piece at a time, side by side
  std::vector<std::int32_t> lengths(std::min(sequences, kRows));
  std::vector<std::int64_t> pointers(lengths.size()), ends(std::min(borders, kRows));
  const std::int64_t pointers_at = kMegatronHeader + static_cast<std::int64_t>(sequences) * 4;
  const std::int64_t borders_at = pointers_at + static_cast<std::int64_t>(sequences) * 8;
  std::uint64_t border = 0;
  std::int64_t last = 0;
  // Document d is sequences [border d, border d + 1).
  const auto take_borders = [&](std::uint64_t sequence) {
    for (; border < borders; ++border) {
      if (border % kRows == 0)
        read(ends.data(), static_cast<std::int64_t>(std::min(kRows, borders - border)) * 8,
             borders_at + static_cast<std::int64_t>(border) * 8);
      const std::int64_t next = ends[border % kRows];
      if (next < last || next > static_cast<std::int64_t>(sequences) || (border == 0 && next != 0))
        fail_damaged(
            "{}: document border {} is {} after {}: borders begin with 0, never fall, and "
            "end with the {} sequences",
            path, border, next, last, sequences);
      last = next;
      if (next > static_cast<std::int64_t>(sequence)) return;
      index.document_offsets.push_back(array.tokens);
    }
  };
  for (std::uint64_t i = 0; i < sequences; ++i) {
    if (i % kRows == 0) {
      const auto count = static_cast<std::int64_t>(std::min(kRows, sequences - i));
      read(lengths.data(), count * 4, kMegatronHeader + static_cast<std::int64_t>(i) * 4);
      read(pointers.data(), count * 8, pointers_at + static_cast<std::int64_t>(i) * 8);
    }
    take_borders(i);
    const std::int32_t length = lengths[i % kRows];
    const std::int64_t pointer = pointers[i % kRows];
    if (length < 0 || pointer != array.tokens * array.width ||
        length > (bin_bytes - pointer) / array.width)
      fail_damaged(
          "{}: sequence {} has {} tokens at byte {}: expected them at byte {}, inside the "
          "{} bytes of the .bin",
          path, i, length, pointer, array.tokens * array.width, bin_bytes);
    array.tokens += length;
  }
  take_borders(sequences);
  if (borders == 0 || border != borders || last != static_cast<std::int64_t>(sequences))
    fail_damaged("{}: its {} document borders end with sequence {}, there are {}", path, borders,
                 last, sequences);
  if (array.tokens * array.width != bin_bytes)
    fail_damaged("{}: its sequences hold {} tokens of {} bytes, the .bin has {} bytes", path,
                 array.tokens, array.width, bin_bytes);
  return index;
}

}  // namespace longspan::io
