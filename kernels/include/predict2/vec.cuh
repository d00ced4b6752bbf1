// SPDX-License-Identifier: Apache-2.0
// 16 bytes of a tensor as floats: kVec<T> values a load.
#pragma once

#include <cuda_bf16.h>

namespace predict2 {

template <typename T>
constexpr int kVec = 16 / sizeof(T);

__device__ inline void Unpack(const uint4& bits, float (&values)[4]) {
  values[0] = __uint_as_float(bits.x);
  values[1] = __uint_as_float(bits.y);
  values[2] = __uint_as_float(bits.z);
  values[3] = __uint_as_float(bits.w);
}

// A bf16 is the upper half of a float.
__device__ inline void Unpack(const uint4& bits, float (&values)[8]) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// What many blocks read: cached.
template <typename T>
__device__ inline uint4 Fetch(const T* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}

template <typename T>
__device__ inline void Load(const T* from, float (&values)[kVec<T>]) {
  Unpack(Fetch(from), values);
}

// What nobody reads again: first to leave the caches, so that shared rows stay.
template <typename T>
__device__ inline uint4 FetchOnce(const T* from) {
  return __ldcs(reinterpret_cast<const uint4*>(from));
}

__device__ inline void Store(float* to, const float (&values)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
}

__device__ inline void Store(__nv_bfloat16* to, const float (&values)[8]) {
  __nv_bfloat162 pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(pairs);
}

// The value that a tensor of T would hold.
template <typename T>
__device__ inline float Round(float value) {
  return static_cast<float>(static_cast<T>(value));
}

}  // namespace predict2
