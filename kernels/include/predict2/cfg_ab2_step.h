// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace predict2 {

// One solver step after the network: guidance, preconditioning, conditioning frames, update.
//
//   x0_c    = (1 - t) x - t flow_cond, x0_u likewise from flow_uncond; frames below num_condition
//   take `condition` x0      = x0_c + guidance (x0_c - x0_u), in float latents = keep x + now x0 +
//   before previous_x0, in double, rounded to float
//
// latents, previous_x0, x0: float [channels, frames, plane], contiguous; latents is updated in
// place. flow_cond, flow_uncond: bf16 of the same shape; flow_uncond may be null, then x0 = x0_c.
// condition: float [channels, num_condition, plane]; null when num_condition is 0.
// Returns cudaErrorInvalidValue, without launching, for a null pointer, a size below 0 or
// num_condition beyond frames.
struct SolverStep {
  float time;      // of the network, sigma / (sigma + 1)
  float guidance;  // scale
  double keep, now, before;
};

cudaError_t CfgAb2Step(float* latents, const __nv_bfloat16* flow_cond,
                       const __nv_bfloat16* flow_uncond, const float* previous_x0,
                       const float* condition, float* x0, int64_t channels, int64_t frames,
                       int64_t plane, int64_t num_condition, SolverStep step, cudaStream_t stream);

}  // namespace predict2
