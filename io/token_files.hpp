/// Token ids in the files of other programs: NumPy's .npy (numpy.lib.format, versions 1 to 3; one
/// dim of integers), llm.c's .bin (dev/data/data_common.py), Megatron's .bin with its .idx
/// (megatron/core/datasets/indexed_dataset.py), and raw .bin without any header. The parsers look
/// at bytes in memory alone and check every number before it is used; reading and writing stream.
/// Nothing here communicates. Read next: document_input.hpp, launcher/convert_dataset.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/document_input.hpp"
#include "io/token_dataset.hpp"

namespace longspan::io {

enum class TokenFileFormat { kRaw, kNpy, kLlmc, kMegatron };
std::string_view name_of(TokenFileFormat format);  ///< "raw", "npy", "llmc", "megatron"

/// Where the ids of a file lie and how they are written, little-endian.
struct TokenArray {
  std::int64_t offset = 0;  ///< of the first, in bytes
  std::int64_t tokens = 0;
  int width = 2;  ///< bytes of one: 1, 2, 4, 8
  bool is_signed = false;
};

/// `head`: the beginning of the file, at least kTokenHeaderBytes of it or all; `file_bytes`: its
/// size. Both throw Error (damaged), beginning with `path`, unless the file is exactly what its
/// header says.
constexpr std::int64_t kTokenHeaderBytes = 64 << 10;
TokenArray parse_npy_header(const std::string& path, std::string_view head,
                            std::int64_t file_bytes);
TokenArray parse_llmc_header(const std::string& path, std::string_view head,
                             std::int64_t file_bytes);

struct MegatronIndex {
  TokenArray array;
  std::vector<std::int64_t> document_offsets;  ///< tokens, [documents + 1]
};
/// `read(data, bytes, offset)` fetches from the .idx of `idx_bytes`; `bin_bytes`: size of the .bin,
/// which must hold the sequences one after the other in the order of the index. Throws Error
/// (damaged).
using ReadAt = std::function<void(void*, std::int64_t, std::int64_t)>;
MegatronIndex parse_megatron_index(const std::string& path, const ReadAt& read,
                                   std::int64_t idx_bytes, std::int64_t bin_bytes);

/// By its first bytes, or for Megatron by the .idx next to a .bin; none if it says nothing.
std::optional<TokenFileFormat> detect_token_file(const std::string& path);

/// Where documents begin and end in files that do not say so themselves. The ids stay in the text.
struct DocumentBorders {
  std::optional<std::int64_t> start;  ///< a document begins with every such id
  std::optional<std::int64_t> end;    ///< a document ends with every such id
};

/// Feeds the documents of a file to `sink`, ids as u8, u16 or u32. `path` may be either file of a
/// Megatron pair; `raw_dtype` is for kRaw alone. Throws Error: damaged for a file that is not what
/// it says, or an id that is negative or too large, with its number.
void read_token_file(const std::string& path, const std::string& name, TokenFileFormat format,
                     DType raw_dtype, const DocumentBorders& borders, DocumentSink& sink);

struct TokenFileRequest {
  std::string output;  ///< of a Megatron pair: either file
  TokenFileFormat format = TokenFileFormat::kRaw;
  std::optional<DType> dtype;  ///< none = the narrowest usual one; only for kRaw and kNpy
  std::optional<Split> split;  ///< none = all: those that train, then those that validate
  bool replace = false;
};
struct TokenFileSummary {
  std::vector<std::string> files;
  std::string dtype;  ///< as the format calls it
  std::int64_t tokens = 0, documents = 0, bytes = 0;
};
using TokenFileProgress = std::function<void(std::int64_t done, std::int64_t total)>;

/// Writes the tokens of a dataset, under a temporary name, synced and renamed. Throws Error: usage
/// for what the format cannot hold, failed for the disk, damaged for the dataset.
TokenFileSummary write_token_file(const TokenDataset& dataset, const TokenFileRequest& request,
                                  const TokenFileProgress& progress);

}  // namespace longspan::io
