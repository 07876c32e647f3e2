#pragma once

#include <string>

namespace longspan::model {

/// "oneDNN 2.6.3": the library behind the CPU's matrix products.
std::string math_library_version();
/// "AVX-512 with AMX (oneDNN), AVX3_SPR (own kernels)": the instruction sets that both use here.
std::string instruction_set_line();
/// Whether both have at least AVX2; below it training is many times slower than it could be.
bool vectorised_well();

}  // namespace longspan::model
