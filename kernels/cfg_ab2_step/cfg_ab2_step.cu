// SPDX-License-Identifier: Apache-2.0
#include "predict2/cfg_ab2_step.h"

#include <cuda_bf16.h>

namespace predict2 {
namespace {

constexpr int kThreads = 256;

__device__ inline float ToFloat(float value) {
  return value;
}
__device__ inline float ToFloat(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

// One thread an element: the work is some 20 bytes of traffic each and ten flops, so only loads
// matter, and neighbouring threads read neighbouring addresses of every array. All read the same
// five numbers, from the cache. `out` may be `latents`, so neither is restricted.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    Step(const float* latents, const T* __restrict__ flow_cond, const T* __restrict__ flow_uncond,
         const float* __restrict__ previous_x0, const float* __restrict__ condition,
         const double* __restrict__ step, float* out, float* __restrict__ x0_out, int64_t frames,
         int64_t plane, int64_t num_condition, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  const float x = latents[i];
  const int64_t frame = i / plane % frames;
  float x0;
  if (frame < num_condition) {
    const int64_t channel = i / (plane * frames);
    x0 = condition[(channel * num_condition + frame) * plane + i % plane];
  } else {
    const auto time = static_cast<float>(step[0]);
    const float kept = static_cast<float>(1.0 - step[0]) * x;
    x0 = kept - time * ToFloat(flow_cond[i]);
    if (flow_uncond != nullptr) {
      const float uncond = kept - time * ToFloat(flow_uncond[i]);
      x0 += static_cast<float>(step[1]) * (x0 - uncond);
    }
  }
  x0_out[i] = x0;
  // double, as the original updates: the sum cancels at low noise
  out[i] = static_cast<float>(step[2] * x + step[3] * x0 + step[4] * previous_x0[i]);
}

}  // namespace

cudaError_t CfgAb2Step(DType dtype, const float* latents, const void* flow_cond,
                       const void* flow_uncond, const float* previous_x0, const float* condition,
                       const double* step, float* out, float* x0, int64_t channels, int64_t frames,
                       int64_t plane, int64_t num_condition, cudaStream_t stream) {
  if (!IsKnown(dtype) || channels < 0 || frames < 0 || plane < 0 || num_condition < 0 ||
      num_condition > frames) {
    return cudaErrorInvalidValue;
  }
  if (channels == 0 || frames == 0 || plane == 0) return cudaSuccess;
  if (!latents || !flow_cond || !previous_x0 || !step || !out || !x0 ||
      (num_condition > 0 && !condition)) {
    return cudaErrorInvalidValue;
  }
  if (channels > kMaxRows * kThreads / frames / plane) return cudaErrorInvalidValue;
  const int64_t size = channels * frames * plane;
  const auto blocks = static_cast<unsigned>((size + kThreads - 1) / kThreads);
  if (dtype == DType::kFloat) {
    Step<float><<<blocks, kThreads, 0, stream>>>(
        latents, static_cast<const float*>(flow_cond), static_cast<const float*>(flow_uncond),
        previous_x0, condition, step, out, x0, frames, plane, num_condition, size);
  } else {
    Step<__nv_bfloat16><<<blocks, kThreads, 0, stream>>>(
        latents, static_cast<const __nv_bfloat16*>(flow_cond),
        static_cast<const __nv_bfloat16*>(flow_uncond), previous_x0, condition, step, out, x0,
        frames, plane, num_condition, size);
  }
  return cudaGetLastError();
}

}  // namespace predict2
