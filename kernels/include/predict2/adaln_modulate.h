// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "predict2/dtype.h"

namespace predict2 {

// LayerNorm without weights, then the modulation of the token's frame.
//
//   out = (x - mean(x)) / sqrt(var(x) + 1e-6) * (1 + scale) + shift
//
// In float, rounded once, at the end.
//
// x, out: [frames, tokens, width], contiguous; frames counts those of all items of a batch, tokens
// those of a frame. modulation: [frames, parts, width], contiguous; part 0 is the shift, part 1 the
// scale, others are skipped. All of `dtype` and 16-byte aligned, out may be x.
// width is a multiple of 16 bytes, at most kMaxWidth; parts is 2 or more; all frames
// have at most kMaxRows tokens.
// Returns cudaErrorInvalidValue, without launching, for anything else, null or a size below 0.
constexpr int64_t kMaxWidth = 5120;

cudaError_t AdalnModulate(DType dtype, const void* x, const void* modulation, void* out,
                          int64_t frames, int64_t tokens, int64_t width, int64_t parts,
                          cudaStream_t stream);

// The same in e4m3: out [frames, tokens, width] and scales [frames, tokens], 16-byte aligned, of
// the unrounded result as e4m3.cuh says.
cudaError_t AdalnModulateE4m3(DType dtype, const void* x, const void* modulation, void* out,
                              float* scales, int64_t frames, int64_t tokens, int64_t width,
                              int64_t parts, cudaStream_t stream);

}  // namespace predict2
