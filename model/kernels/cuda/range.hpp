/// Names on the time line of NVIDIA's profilers (NVTX): `nsys profile longspan train ...` shows
/// which operation a kernel belongs to. Without a profiler a range costs a look at a pointer.
#pragma once

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define LONGSPAN_NVTX 1
#endif

namespace longspan::model {

/// From here to the end of the scope, on the calling thread.
class [[nodiscard]] Range {
 public:
#if defined(LONGSPAN_NVTX)
  explicit Range(const char* name) {
    nvtxRangePushA(name);
  }
  ~Range() {
    nvtxRangePop();
  }
#else
  explicit Range(const char*) {}
#endif
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace longspan::model
