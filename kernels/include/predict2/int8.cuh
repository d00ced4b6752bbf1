// SPDX-License-Identifier: Apache-2.0
// A row as integers from -127 to 127 times its scale, beside e4m3.cuh.
//
//   scale = max(max |u| / 127, 2^-64), out = integer(u * (1 / scale))
//
// u is the row in float, each of the three operations is rounded to float, and integers are rounded
// to the nearest, ties to even. A row that is not finite has a scale that isn't, and zeros.
#pragma once

#include "predict2/e4m3.cuh"

namespace predict2 {

constexpr float kLargestInt8 = 127.0f;

// 4 values a word, the first in its lowest byte.
__device__ inline unsigned ToInt8(const float* values, float inverse) {
  unsigned word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word |= (static_cast<unsigned>(__float2int_rn(values[i] * inverse)) & 0xffu) << (8 * i);
  }
  return word;
}

__device__ inline void Store(int8_t* to, const float (&values)[8], float inverse) {
  *reinterpret_cast<uint2*>(to) = {ToInt8(values, inverse), ToInt8(values + 4, inverse)};
}

}  // namespace predict2
