/// Headers of safetensors files: the first 8 bytes are the size of the data, the rest the JSON.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "io/safetensors.hpp"
#include "parallel/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::int64_t bytes = 0;
  if (size < sizeof bytes) return 0;
  std::memcpy(&bytes, data, sizeof bytes);
  bytes &= 0x7fffffffffffffff;
  const std::string_view header(reinterpret_cast<const char*>(data) + sizeof bytes,
                                size - sizeof bytes);
  try {
    std::int64_t end = 0;
    for (const auto& tensor : longspan::io::parse_safetensors_header(header, bytes).tensors) {
      if (tensor.begin != end || tensor.end < tensor.begin) std::abort();  // a hole, or an overlap
      end = tensor.end;
    }
    if (end != bytes) std::abort();
  } catch (const longspan::Error& error) {
    if (error.status() != longspan::ExitStatus::kDamaged) std::abort();
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
  return 0;
}
