// SPDX-License-Identifier: Apache-2.0
// A row as 8-bit floats (e4m3: 4 bits of exponent, 3 of mantissa, no infinities) times its scale:
// what torch._scaled_mm takes with scales by row.
//
//   scale = max(max |u| / 448, 2^-64), out = e4m3(u * (1 / scale))
//
// u is the row in float, and each of the three operations is rounded to float. e4m3 rounds to the
// nearest, ties to even; what is beyond 448 becomes 448. A row with a NaN has a NaN for its scale.
#pragma once

#include <cuda_fp8.h>

#include "predict2/reduce.cuh"
#include "predict2/vec.cuh"

namespace predict2 {

constexpr float kLargestE4m3 = 448.0f;
constexpr float kSmallestScale = 0x1p-64f;  // so that a row of zeros has one with an inverse

template <typename Out>
constexpr bool kIsE4m3 = false;
template <>
constexpr bool kIsE4m3<__nv_fp8_e4m3> = true;

// The larger of `bits` and every |value|, as the bits of a float: without its sign a float is as
// large as its bits are, and a NaN is larger than all others.
template <int kCount>
__device__ inline unsigned LargestBits(unsigned bits, const float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const unsigned magnitude = __float_as_uint(values[i]) & 0x7fffffffu;
    bits = magnitude > bits ? magnitude : bits;
  }
  return bits;
}

// Of a row whose largest value is of these bits, for codes up to `largest_code`.
__device__ inline float ScaleOf(unsigned largest_bits, float largest_code) {
  const float scale = __uint_as_float(largest_bits) / largest_code;
  return scale < kSmallestScale ? kSmallestScale : scale;  // a NaN stays
}

// Of the row that a block holds, from the largest of each thread.
template <int kThreads>
__device__ inline float RowScale(unsigned largest_bits) {
  __shared__ unsigned partial[kThreads / 32];
  return ScaleOf(BlockMax<kThreads>(largest_bits, partial), kLargestE4m3);
}

// 4 values a word, the first in its lowest byte. From sm_89 on an instruction converts two.
__device__ inline unsigned ToE4m3(float a, float b, float c, float d) {
  const unsigned low = __nv_cvt_float2_to_fp8x2({a, b}, __NV_SATFINITE, __NV_E4M3);
  const unsigned high = __nv_cvt_float2_to_fp8x2({c, d}, __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

template <int kCount>
__device__ inline void Store(__nv_fp8_e4m3* to, const float (&values)[kCount], float inverse) {
  static_assert(kCount == 4 || kCount == 8, "one word or two");
  unsigned words[kCount / 4];
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    words[i / 4] = ToE4m3(values[i] * inverse, values[i + 1] * inverse, values[i + 2] * inverse,
                          values[i + 3] * inverse);
  }
  if constexpr (kCount == 8) {
    *reinterpret_cast<uint2*>(to) = {words[0], words[1]};
  } else {
    *reinterpret_cast<unsigned*>(to) = words[0];
  }
}

}  // namespace predict2
