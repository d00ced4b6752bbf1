// SPDX-License-Identifier: Apache-2.0
// CUDA's bfloat16 on the CPU: the upper half of a float, rounded to nearest even.
#pragma once

#include "cuda_runtime_api.h"

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const uint32_t half = 0x7fffu + ((word >> 16) & 1);
    bits = std::isnan(value) ? 0x7fff : static_cast<uint16_t>((word + half) >> 16);
  }
  explicit operator float() const { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  return static_cast<float>(value);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
