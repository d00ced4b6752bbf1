// SPDX-License-Identifier: Apache-2.0
#include "predict2/cfg_ab2_step.h"

namespace predict2 {
namespace {

constexpr int kThreads = 256;

// One thread an element: the work is 22 bytes of traffic each and five flops, so only loads matter,
// and neighbouring threads read neighbouring addresses of every array.
__global__ void __launch_bounds__(kThreads)
    Step(float* __restrict__ latents, const __nv_bfloat16* __restrict__ flow_cond,
         const __nv_bfloat16* __restrict__ flow_uncond, const float* __restrict__ previous_x0,
         const float* __restrict__ condition, float* __restrict__ x0_out, int64_t frames,
         int64_t plane, int64_t num_condition, int64_t size, SolverStep step) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  const float x = latents[i];
  const int64_t frame = i / plane % frames;
  float x0;
  if (frame < num_condition) {
    const int64_t channel = i / (plane * frames);
    x0 = condition[(channel * num_condition + frame) * plane + i % plane];
  } else {
    const float kept = (1.0f - step.time) * x;
    x0 = kept - step.time * __bfloat162float(flow_cond[i]);
    if (flow_uncond != nullptr) {
      const float uncond = kept - step.time * __bfloat162float(flow_uncond[i]);
      x0 += step.guidance * (x0 - uncond);
    }
  }
  x0_out[i] = x0;
  // double, as the original updates: the sum cancels at low noise
  latents[i] = static_cast<float>(step.keep * x + step.now * x0 + step.before * previous_x0[i]);
}

}  // namespace

cudaError_t CfgAb2Step(float* latents, const __nv_bfloat16* flow_cond,
                       const __nv_bfloat16* flow_uncond, const float* previous_x0,
                       const float* condition, float* x0, int64_t channels, int64_t frames,
                       int64_t plane, int64_t num_condition, SolverStep step, cudaStream_t stream) {
  if (channels < 0 || frames < 0 || plane < 0 || num_condition < 0 || num_condition > frames) {
    return cudaErrorInvalidValue;
  }
  const int64_t size = channels * frames * plane;
  if (size == 0) return cudaSuccess;
  if (!latents || !flow_cond || !previous_x0 || !x0 || (num_condition > 0 && !condition)) {
    return cudaErrorInvalidValue;
  }
  const auto blocks = static_cast<unsigned>((size + kThreads - 1) / kThreads);
  Step<<<blocks, kThreads, 0, stream>>>(latents, flow_cond, flow_uncond, previous_x0, condition, x0,
                                        frames, plane, num_condition, size, step);
  return cudaGetLastError();
}

}  // namespace predict2
