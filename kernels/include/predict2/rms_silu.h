// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "predict2/dtype.h"

namespace predict2 {

// The VAE's norm over the channels of each pixel, and SiLU where asked for.
//
//   n = x / max(|x|, 1e-12) * sqrt(channels) * gamma, where |x| is the 2-norm over the channels
//   out = n / (1 + exp(-n)) if silu, else n
//
// In float, rounded once, at the end; a sum of squares below float's smallest counts as 0.
//
// x: [batch, pixels, channels], contiguous; pixels counts those of all frames of an item. gamma:
// [channels]. out: as x, but an item begins `out_stride` elements after the last one, so that it
// may be the later frames of a longer clip. All of `dtype` and 16-byte aligned, as is out_stride,
// which isn't less than an item unless batch is 1. out may be x. channels is a multiple of 16
// bytes, at most kMaxChannels; batch * pixels at most kMaxRows. Returns cudaErrorInvalidValue,
// without launching, for anything else, null or a size below 0.
constexpr int64_t kMaxChannels = 1024;

cudaError_t RmsSilu(DType dtype, const void* x, const void* gamma, void* out, int64_t batch,
                    int64_t pixels, int64_t channels, int64_t out_stride, bool silu,
                    cudaStream_t stream);

}  // namespace predict2
