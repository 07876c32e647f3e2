#include "launcher/compute.hpp"

#include "parallel/error.hpp"

namespace longspan::launcher {

Compute cpu_compute() {
  return {model::cpu_backend(), make_mpi_group, "cpu"};
}

Compute open_compute(const RunSettings& run) {
  if (run.device == "cuda")
    fail_usage(
        "run.device=cuda: this build has no GPU plug-in (liblongspan_cuda.so): set "
        "run.device=cpu");
  return cpu_compute();
}

}  // namespace longspan::launcher
