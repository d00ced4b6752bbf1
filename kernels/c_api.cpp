// SPDX-License-Identifier: Apache-2.0
// The launchers under C names, for ctypes: callable without libtorch and without TensorRT.
#include "predict2/cfg_ab2_step.h"

#define PREDICT2_API extern "C" __attribute__((visibility("default")))

PREDICT2_API const char* predict2_error_name(int code) {
  return cudaGetErrorName(static_cast<cudaError_t>(code));
}

PREDICT2_API int predict2_cfg_ab2_step(float* latents, const void* flow_cond,
                                       const void* flow_uncond, const float* previous_x0,
                                       const float* condition, float* x0, int64_t channels,
                                       int64_t frames, int64_t plane, int64_t num_condition,
                                       float time, float guidance, double keep, double now,
                                       double before, void* stream) {
  return predict2::CfgAb2Step(
      latents, static_cast<const __nv_bfloat16*>(flow_cond),
      static_cast<const __nv_bfloat16*>(flow_uncond), previous_x0, condition, x0, channels, frames,
      plane, num_condition, {time, guidance, keep, now, before}, static_cast<cudaStream_t>(stream));
}
