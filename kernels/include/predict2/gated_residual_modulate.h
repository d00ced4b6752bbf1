// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "predict2/dtype.h"

namespace predict2 {

// The end of a sub-layer and the beginning of the next one.
//
//   x_out = x + round(gate * y)
//   out = (x_out - mean(x_out)) / sqrt(var(x_out) + 1e-6) * (1 + next scale) + next shift
//
// The product is rounded to `dtype` before the sum, and the norm reads the rounded sum: in the
// network both are tensors, so x_out equals torch's bit for bit. The rest is in float, rounded
// once.
//
// x, y, x_out, out: [frames, tokens, width], contiguous; frames counts those of all items of a
// batch. modulation: [frames, 3, width], contiguous; part 2 is y's gate. next_modulation: [frames,
// next_parts, width]; part 0 is the shift, part 1 the scale. All of `dtype` and 16-byte aligned;
// x_out may be x. width is a multiple of 16 bytes, at most kMaxWidth; next_parts is 2 or more.
// Returns cudaErrorInvalidValue, without launching, for anything else, null or a size below 0.
cudaError_t GatedResidualModulate(DType dtype, const void* x, const void* y, const void* modulation,
                                  const void* next_modulation, void* x_out, void* out,
                                  int64_t frames, int64_t tokens, int64_t width, int64_t next_parts,
                                  cudaStream_t stream);

// The same with out in e4m3, and scales [frames, tokens], 16-byte aligned, of the unrounded result
// as e4m3.cuh says; x_out stays of `dtype`.
cudaError_t GatedResidualModulateE4m3(DType dtype, const void* x, const void* y,
                                      const void* modulation, const void* next_modulation,
                                      void* x_out, void* out, float* scales, int64_t frames,
                                      int64_t tokens, int64_t width, int64_t next_parts,
                                      cudaStream_t stream);

// The first of the two lines alone, where no norm follows.
cudaError_t GatedResidual(DType dtype, const void* x, const void* y, const void* modulation,
                          void* x_out, int64_t frames, int64_t tokens, int64_t width,
                          cudaStream_t stream);

}  // namespace predict2
