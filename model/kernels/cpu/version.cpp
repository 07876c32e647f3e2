#include "model/kernels/version.hpp"

#include <dnnl.h>
#include <fmt/format.h>

#include "model/kernels/cpu/instruction_set.hpp"

namespace longspan::model {

std::string math_library_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

std::string instruction_set_line() {
  const auto dnnl_name = [] {
    switch (dnnl_get_effective_cpu_isa()) {
      case dnnl_cpu_isa_sse41:
        return "SSE 4.1";
      case dnnl_cpu_isa_avx:
        return "AVX";
      case dnnl_cpu_isa_avx2:
        return "AVX2";
      case dnnl_cpu_isa_avx2_vnni:
        return "AVX2 with VNNI";
      case dnnl_cpu_isa_avx512_core:
        return "AVX-512";
      case dnnl_cpu_isa_avx512_core_vnni:
        return "AVX-512 with VNNI";
      case dnnl_cpu_isa_avx512_core_bf16:
        return "AVX-512 with bf16";
      case dnnl_cpu_isa_avx512_core_amx:
        return "AVX-512 with AMX";
      default:
        return "unknown to this program";
    }
  };
  return fmt::format("{} (oneDNN), {}{} (own kernels)", dnnl_name(), cpu::instruction_sets().front(),
                     cpu::uses_amx() ? " and AMX" : "");
}

bool vectorised_well() {
  return cpu::instruction_sets().front() != "SCALAR";
}

}  // namespace longspan::model
