// Host code that includes the host half of CUDA's runtime alone.
#pragma once

#include "cuda_host_api.h"
