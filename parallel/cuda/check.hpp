/// Every CUDA call goes through LONGSPAN_CUDA(call): an error becomes an Error with the call, its
/// place in the source and what CUDA says.
#pragma once

#include <cuda_runtime.h>

#include "parallel/error.hpp"

namespace longspan::cuda {

[[noreturn]] void fail_cuda(cudaError_t error, const char* call, const char* file, int line);

inline void check(cudaError_t error, const char* call, const char* file, int line) {
  if (error != cudaSuccess) fail_cuda(error, call, file, line);
}

}  // namespace longspan::cuda

#define LONGSPAN_CUDA(call) ::longspan::cuda::check((call), #call, __FILE__, __LINE__)
