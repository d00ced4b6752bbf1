// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "predict2/qk_norm_rope.h"

namespace predict2 {

// A packed QKV of bf16 as attention in 8 bits takes it: queries and keys with a scale a token,
// values with a scale a channel and transposed, since Hopper's 8-bit matrix instructions sum along
// memory only. Heads have kPrepHeadDim channels; an order of tokens is as in qk_norm_rope.h.
constexpr int64_t kPrepHeadDim = 128;

enum class Codes : int { kInt8 = 0, kE4m3 = 1 };

struct CodedHeads {
  Heads heads;         // of bf16 with a weight; out: codes [batch, heads, tokens, kPrepHeadDim]
  float* scales;       // [batch, heads, tokens]
  const float* shift;  // [heads, kPrepHeadDim], 16-byte aligned; null for none
};

// Queries and keys as in qk_norm_rope.h, less their shift, as int8.cuh or e4m3.cuh says, a row
// being a token's head. Rounded once, to codes.
//
// A shift of all keys changes no softmax over them: one near the keys' mean leaves smaller values,
// and so finer steps.
// All of it 16-byte aligned, but `order` by 4. Returns cudaErrorInvalidValue, without launching,
// for anything else, null or a size below 0.
cudaError_t QkPrep(Codes codes, const CodedHeads& q, const CodedHeads& k, const Rotary* rotary,
                   int64_t batch, int64_t heads, float q_scale, cudaStream_t stream);

struct Values {
  const void* in;  // bf16 [batch, tokens, heads, kPrepHeadDim]; a token begins `stride` elements
                   // after the last one
  float* scales;   // [batch, heads, kPrepHeadDim]
  int64_t batch, tokens, heads, stride;
};

// scale = max(max |v| / 448, 2^-64) over the tokens; the same bits in every run. A channel with a
// NaN has a NaN for its scale, one with an infinity an infinity. All 16-byte aligned, as is the
// stride. Refuses as QkPrep does.
cudaError_t VScales(const Values& v, cudaStream_t stream);

// out = e4m3(v * (1 / scale)), saturating: [batch, heads, kPrepHeadDim, PaddedTokens(tokens)], the
// tokens beyond the last one 0. The scales, finite and above 0, may be any: those of an earlier
// solver step save reading the values twice.
// All 16-byte aligned, as is the stride, but `order` [tokens], or null, by 4. Refuses as QkPrep
// does.
cudaError_t VPrep(const Values& v, const int32_t* order, void* out, cudaStream_t stream);

constexpr int64_t PaddedTokens(int64_t tokens) {
  return (tokens + 15) / 16 * 16;
}

}  // namespace predict2
