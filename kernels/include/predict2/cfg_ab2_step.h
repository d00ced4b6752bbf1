// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "predict2/dtype.h"

namespace predict2 {

// One solver step after the network: guidance, preconditioning, conditioning frames, update.
//
//   x0_c = (1 - time) x - time flow_cond, x0_u likewise from flow_uncond; in both, frames below
//          num_condition are those of `condition`
//   x0   = x0_c + guidance (x0_c - x0_u), in float, as is what is above
//   out  = keep x + now x0 + before previous_x0, in double, rounded to float
//
// step: time, guidance, keep, now, before: five doubles in device memory, so that a
// recorded launch takes others each time; time of the network is sigma / (sigma + 1). latents (x),
// previous_x0, x0, out: float [channels, frames, plane], contiguous; out may be latents. flow_cond,
// flow_uncond: of `dtype` and the same shape; flow_uncond may be null, then x0 = x0_c. condition:
// float [channels, num_condition, plane]; null when num_condition is 0. Returns
// cudaErrorInvalidValue, without launching, for another null pointer, an unknown dtype, a size
// below 0, num_condition beyond frames or more elements than 2^31 - 1 blocks of 256 take.
cudaError_t CfgAb2Step(DType dtype, const float* latents, const void* flow_cond,
                       const void* flow_uncond, const float* previous_x0, const float* condition,
                       const double* step, float* out, float* x0, int64_t channels, int64_t frames,
                       int64_t plane, int64_t num_condition, cudaStream_t stream);

}  // namespace predict2
