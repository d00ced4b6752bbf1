// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace predict2 {

// The exact GELU of the MLP's hidden rows, as e4m3 with a scale each.
//
//   u = x / 2 * (1 + erf(x / sqrt(2))), out and scales of u as e4m3.cuh says
//
// In float, rounded once, to e4m3; an infinity counts as a NaN. Moves 3 bytes an element, 2 in and
// 1 out, and 4 a row.
//
// x: bf16 [rows, width]; out: e4m3 of the same shape; scales: float [rows]. All contiguous and
// 16-byte aligned. width is a multiple of 8, at most kMaxHidden; rows at most kMaxRows.
// Returns cudaErrorInvalidValue, without launching, for anything else, null or a size below 0.
constexpr int64_t kMaxHidden = 20480;  // of the 14B network

cudaError_t GeluQuantize(const __nv_bfloat16* x, void* out, float* scales, int64_t rows,
                         int64_t width, cudaStream_t stream);

}  // namespace predict2
