// SPDX-License-Identifier: Apache-2.0
// CUDA's e4m3 on the CPU: to the nearest, ties to even, saturating at 448.
#pragma once

#include "cuda_runtime_api.h"

struct __nv_fp8_e4m3 {
  uint8_t bits;
};

enum __nv_saturation_t { __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3 };

namespace host_cuda {

inline uint8_t ToE4m3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return 0x7f;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0f) return sign | 0x7e;
  // Below 2^-6 steps are 2^-9; above, 8 to an exponent. A carry leads to the next exponent's first.
  const int exponent = std::max(magnitude > 0.0f ? std::ilogb(magnitude) : -6, -6);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  return sign | static_cast<uint8_t>((exponent + 6) * 8 + steps);
}

}  // namespace host_cuda

inline uint16_t __nv_cvt_float2_to_fp8x2(float2 two, __nv_saturation_t, __nv_fp8_interpretation_t) {
  return static_cast<uint16_t>(host_cuda::ToE4m3(two.x) | host_cuda::ToE4m3(two.y) << 8);
}
