// SPDX-License-Identifier: Apache-2.0
// Sums and maxima over the lanes of a warp and over a block; every thread gets the result.
#pragma once

namespace predict2 {

// Over each group of kLanes neighbouring lanes; every lane of the warp takes part.
template <int kLanes>
__device__ inline float GroupSum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

template <int kLanes>
__device__ inline unsigned GroupMax(unsigned value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const unsigned other = __shfl_xor_sync(0xffffffffu, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// `partial` is shared memory of kThreads / 32 floats that nothing else uses, before or after: so
// one barrier is enough.
template <int kThreads>
__device__ inline float BlockSum(float value, float* partial) {
  value = GroupSum<32>(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) sum += partial[i];
  return sum;
}

// `partial` as above, of integers.
template <int kThreads>
__device__ inline unsigned BlockMax(unsigned value, unsigned* partial) {
  value = __reduce_max_sync(0xffffffffu, value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  unsigned most = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) most = partial[i] > most ? partial[i] : most;
  return most;
}

}  // namespace predict2
