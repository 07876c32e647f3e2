#include "model/kernels/version.hpp"

#include <dnnl.h>
#include <fmt/format.h>

namespace longspan::model {

std::string math_library_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace longspan::model
