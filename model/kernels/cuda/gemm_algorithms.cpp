#include "model/kernels/cuda/gemm_algorithms.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "parallel/error.hpp"
#include "parallel/log.hpp"
#include "parallel/random.hpp"

namespace longspan::model {
namespace {

constexpr std::string_view kKind = "longspan-gemm-2", kKind1 = "longspan-gemm-1";

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

template <class Number>
bool parse(std::string_view text, int base, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  return error == std::errc() && end == text.data() + text.size();
}

bool parse_flag(std::string_view text, bool& flag) {
  flag = text == "1";
  return text == "0" || text == "1";
}

/// Tabs and line ends are the file's own.
std::string one_field(std::string_view text) {
  std::string field(text);
  for (char& c : field)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return field;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::optional<std::size_t> fastest_fused(const std::vector<double>& fused, double apart) {
  std::optional<std::size_t> best;
  double least = apart;
  for (std::size_t i = 0; i < fused.size(); ++i)
    if (fused[i] < least) least = fused[i], best = i;
  return best;
}

std::string to_line(const TunedGemm& t) {
  const GemmShape& s = t.shape;
  std::string line =
      fmt::format("{}\t{}\t{}\t{} {} {} {} {} {} {:d} {:d} {:d} {:d} {:d} {} {}\t{:d} {:d}", kKind,
                  one_field(t.gpu), t.library, s.m, s.n, s.k, s.lda, s.ldb, s.ldc, s.trans_a,
                  s.trans_b, s.accumulate, s.bias, s.bf16, s.alignment,
                  static_cast<int>(s.epilogue), t.algorithm.bias_fused, t.algorithm.epilogue_fused);
  for (const std::uint64_t word : t.algorithm.bytes) line += fmt::format(" {:016x}", word);
  return fmt::format("{}\t{:016x}", line, hash_name(line));
}

std::optional<TunedGemm> parse_tuned_gemm(std::string_view line) {
  const auto fields = split(line, '\t');
  if (fields.size() != 6 || (fields[0] != kKind && fields[0] != kKind1)) return std::nullopt;
  const bool epilogues = fields[0] == kKind;
  std::uint64_t checksum = 0;
  const std::string_view checked = line.substr(0, line.size() - fields[5].size() - 1);
  if (fields[5].size() != 16 || !parse(fields[5], 16, checksum) || checksum != hash_name(checked))
    return std::nullopt;
  TunedGemm t;
  t.gpu = fields[1];
  GemmShape& s = t.shape;
  const auto shape = split(fields[3], ' '), algorithm = split(fields[4], ' ');
  if (!parse(fields[2], 10, t.library) || shape.size() != (epilogues ? 13 : 12) ||
      algorithm.size() != (epilogues ? 10 : 9))
    return std::nullopt;
  std::int64_t* const numbers[] = {&s.m, &s.n, &s.k, &s.lda, &s.ldb, &s.ldc};
  bool* const flags[] = {&s.trans_a, &s.trans_b, &s.accumulate, &s.bias, &s.bf16};
  for (std::size_t i = 0; i < 6; ++i)
    if (!parse(shape[i], 10, *numbers[i])) return std::nullopt;
  for (std::size_t i = 0; i < 5; ++i)
    if (!parse_flag(shape[6 + i], *flags[i])) return std::nullopt;
  if (!parse(shape[11], 10, s.alignment) || !parse_flag(algorithm[0], t.algorithm.bias_fused))
    return std::nullopt;
  if (epilogues) {
    int number = 0;
    if (!parse(shape[12], 10, number) || number < 0 ||
        number > static_cast<int>(GemmEpilogue::kGeluBackwardBias) ||
        !parse_flag(algorithm[1], t.algorithm.epilogue_fused))
      return std::nullopt;
    s.epilogue = static_cast<GemmEpilogue>(number);
  }
  for (std::size_t i = 0; i < 8; ++i)
    if (!parse(algorithm[algorithm.size() - 8 + i], 16, t.algorithm.bytes[i])) return std::nullopt;
  return t;
}

std::string gemm_algorithms_path() {
  if (const std::string path = environment("LONGSPAN_GEMM_CACHE"); !path.empty())
    return path == "off" ? "" : path;
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty())
    return cache + "/longspan/cublaslt.txt";
  const std::string home = environment("HOME");
  return home.empty() ? "" : home + "/.cache/longspan/cublaslt.txt";
}

GemmAlgorithms::GemmAlgorithms(std::string path, std::string gpu, std::uint64_t library)
    : path_(std::move(path)), gpu_(one_field(gpu)), library_(library) {
  if (path_.empty()) return;
  std::ifstream file(path_);
  std::int64_t lines = 0, wrong = 0;
  for (std::string line; std::getline(file, line); ++lines) {
    const auto tuned = parse_tuned_gemm(line);
    if (!tuned)
      ++wrong;
    else if (tuned->gpu == gpu_ && tuned->library == library_)
      known_.emplace(tuned->shape, tuned->algorithm);
  }
  if (wrong > 0)
    log::warn(
        "{} of {} lines of {} are not tuned matrix products: they are ignored (delete the "
        "file to tune afresh, or set LONGSPAN_GEMM_CACHE)",
        wrong, lines, printable(path_));
}

std::optional<GemmAlgorithm> GemmAlgorithms::find(const GemmShape& shape) const {
  const auto found = known_.find(shape);
  if (found == known_.end()) return std::nullopt;
  return found->second;
}

void GemmAlgorithms::add(const GemmShape& shape, const GemmAlgorithm& algorithm) {
  known_[shape] = algorithm;
  if (path_.empty() || !writable_) return;
  const std::string line = to_line({gpu_, library_, shape, algorithm}) + "\n";
  std::error_code ignored;  // open() says what is wrong
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  // One write, so that lines of several processes do not mix; a torn one fails its checksum.
  const int file = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const ::ssize_t written = file < 0 ? -1 : ::write(file, line.data(), line.size());
  const int error = errno;
  if (file >= 0) ::close(file);
  if (written == static_cast<::ssize_t>(line.size())) return;
  writable_ = false;
  log::warn(
      "tuned matrix products cannot be kept in {}: {} (every run tunes them again; "
      "LONGSPAN_GEMM_CACHE names another file, or `off`)",
      printable(path_), written < 0 ? std::strerror(error) : "the disk is full");
}

}  // namespace longspan::model
