/// Headers of token files. The first byte says of which format; for Megatron the next 8 are the
/// size of the .bin. Whatever is accepted lies inside its file.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "io/token_files.hpp"
#include "parallel/error.hpp"

namespace {

using namespace longspan::io;

void require(bool good) {
  if (!good) std::abort();
}

void require_inside(const TokenArray& array, std::int64_t bytes) {
  require(array.tokens >= 0 && array.offset >= 0 && array.offset <= bytes);
  require(array.tokens == (bytes - array.offset) / array.width);
}

void parse(int kind, std::string_view bytes) {
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (kind % 3 == 0) return require_inside(parse_npy_header("x.npy", bytes, size), size);
  if (kind % 3 == 1) return require_inside(parse_llmc_header("x.bin", bytes, size), size);
  std::int64_t bin_bytes = 0;
  if (bytes.size() < sizeof bin_bytes) return;
  std::memcpy(&bin_bytes, bytes.data(), sizeof bin_bytes);
  bin_bytes &= 0x7fffffffffffffff;
  bytes.remove_prefix(sizeof bin_bytes);
  const auto read = [&](void* to, std::int64_t count, std::int64_t at) {
    require(count >= 0 && at >= 0 && at + count <= static_cast<std::int64_t>(bytes.size()));
    std::memcpy(to, bytes.data() + at, static_cast<std::size_t>(count));
  };
  const MegatronIndex index =
      parse_megatron_index("x.idx", read, static_cast<std::int64_t>(bytes.size()), bin_bytes);
  require_inside(index.array, bin_bytes);
  const auto& offsets = index.document_offsets;
  require(!offsets.empty() && offsets.front() == 0 && offsets.back() == index.array.tokens);
  for (std::size_t i = 1; i < offsets.size(); ++i) require(offsets[i - 1] <= offsets[i]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  try {
    parse(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
  } catch (const longspan::Error& error) {
    require(error.status() == longspan::ExitStatus::kDamaged);
    require(std::string_view(error.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
