/// Which algorithm of cuBLASLt was fastest for which matrix product, kept in a text file, so that a
/// GPU is asked once. Knows nothing of CUDA: an algorithm is 64 opaque bytes. Read next: gemm.cpp,
/// which asks.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::model {

/// What cuBLASLt may do with a product before it writes it: GELU, GELU that also writes what stands
/// before it, the way back through GELU, and the same with the sums for the bias' gradient. Numbers
/// of the file.
enum class GemmEpilogue { kNone = 0, kGelu, kGeluKeep, kGeluBackward, kGeluBackwardBias };

/// Everything an algorithm is chosen by, as in GemmArgs (the fields of the row-major product).
struct GemmShape {
  std::int64_t m = 0, n = 0, k = 0, lda = 0, ldb = 0, ldc = 0;
  bool trans_a = false, trans_b = false, accumulate = false, bias = false, bf16 = false;
  /// All operands begin at multiples of so many bytes: 16, or what is left.
  std::int64_t alignment = 16;
  GemmEpilogue epilogue = GemmEpilogue::kNone;
  auto operator<=>(const GemmShape&) const = default;
};

struct GemmAlgorithm {
  std::array<std::uint64_t, 8> bytes{};  ///< cublasLtMatmulAlgo_t
  bool bias_fused = false;               ///< else the bias is added by a kernel of its own
  /// Of a shape with an epilogue; else the product and what follows it are faster apart: the
  /// product has an entry of its own, and the bytes here mean nothing.
  bool epilogue_fused = false;
  auto operator<=>(const GemmAlgorithm&) const = default;
};

/// One product's algorithm on one kind of GPU with one version of the library.
struct TunedGemm {
  std::string gpu;  ///< "NVIDIA H200, 132 multiprocessors"
  std::uint64_t library = 0;
  GemmShape shape;
  GemmAlgorithm algorithm;
};

/// The fastest of the ways to do all in one pass, by their seconds (infinite, or no number: it did
/// not run), if it takes less than the `apart` seconds of the product and the kernel behind it.
std::optional<std::size_t> fastest_fused(const std::vector<double>& fused, double apart);

/// One line of the file, without its end: fields between tabs, last a checksum. A line that was
/// torn, or was written by somebody else, parses to nothing. Lines of the first format, which knew
/// no epilogues, still count.
std::string to_line(const TunedGemm& tuned);
std::optional<TunedGemm> parse_tuned_gemm(std::string_view line);

/// LONGSPAN_GEMM_CACHE (`off`: empty, no file), else $XDG_CACHE_HOME/longspan/cublaslt.txt, else
/// ~/.cache/longspan/cublaslt.txt; empty without a home.
std::string gemm_algorithms_path();

/// The file, and what was added since. One thread at a time; any number of processes may use one
/// file: each line is appended with one write, and of several lines for one product the first
/// counts.
class GemmAlgorithms {
 public:
  /// Reads `path` if it exists (empty: there is no file). What cannot be read is said in one
  /// warning and left out: it costs tuning again.
  GemmAlgorithms(std::string path, std::string gpu, std::uint64_t library);
  std::optional<GemmAlgorithm> find(const GemmShape& shape) const;
  /// Remembers and appends to the file; if that fails, one warning for all.
  void add(const GemmShape& shape, const GemmAlgorithm& algorithm);

 private:
  std::string path_, gpu_;
  std::uint64_t library_;
  bool writable_ = true;
  std::map<GemmShape, GemmAlgorithm> known_;
};

}  // namespace longspan::model
