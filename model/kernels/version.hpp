#pragma once

#include <string>

namespace longspan::model {

/// "oneDNN 2.6.3": the library behind the CPU's matrix products.
std::string math_library_version();

}  // namespace longspan::model
