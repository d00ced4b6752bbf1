// SPDX-License-Identifier: Apache-2.0
// The processor's own approximations, each an instruction, to 2^-22 of the result. What is too
// small for a normal float counts as 0.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>

namespace predict2 {

__device__ inline float PowerOfTwo(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

__device__ inline float Inverse(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

}  // namespace predict2
