// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "predict2/dtype.h"

namespace predict2 {

// RMSNorm of every head of the queries and keys, then the rotation by frame, row and column.
//
//   n = x / sqrt(mean(x^2) + 1e-6) * weight, over the head_dim channels of a head
//   out[j] = n[j] cos[j] - n[j + E/2] sin[j], out[j + E/2] = n[j + E/2] cos[j] + n[j] sin[j]
//
// In float, rounded once, at the end; queries also times q_scale. Without `rotary` out = n.
//
// With `order` row i of the output is token order[i], turned by that token's own angles. So the
// tokens of a block that block-sparse attention takes or leaves lie side by side without a pass of
// their own.
struct Heads {
  const void* in;  // [batch, tokens, heads, head_dim]; a token begins `stride` after the last one
  const void* weight;  // [head_dim]; null copies the heads, as for the values of a packed QKV
  void* out;           // contiguous; may be `in` where layout and order are the same
  int64_t tokens;      // 0 leaves these heads out
  int64_t stride;      // elements
  const int32_t* order = nullptr;  // [tokens]; null for the tokens' own
};

struct Axis {
  const float* table;  // [2, positions, channels], cosines and sines
  int64_t positions, channels;
};

struct Rotary {  // positions multiply to `tokens`, channels add up to head_dim / 2
  Axis frames, rows, columns;
};

// in, weight: of `dtype`, 16-byte aligned, as is the stride. head_dim is 32, 64 or 128.
// order: a permutation, 4-byte aligned; an entry outside [0, tokens) counts as the last token.
// out: [batch, heads, tokens, head_dim] when heads_first, else [batch, tokens, heads, head_dim].
// Returns cudaErrorInvalidValue, without launching, for anything else, null or a size below 0.
cudaError_t QkNormRope(DType dtype, const Heads& q, const Heads& k, const Heads& v,
                       const Rotary* rotary, int64_t batch, int64_t heads, int64_t head_dim,
                       float q_scale, bool heads_first, cudaStream_t stream);

}  // namespace predict2
