// SPDX-License-Identifier: Apache-2.0
#include "predict2/rms_silu.h"

#include "predict2/approximate.cuh"
#include "predict2/reduce.cuh"
#include "predict2/vec.cuh"

namespace predict2 {
namespace {

constexpr int kThreads = 256;
constexpr int kChannelsPerLane = 32;  // at most: the VAE's 96, 192 and 384 take 24 of them

struct Problem {
  const void *x, *gamma;
  void* out;
  int64_t out_stride;
  unsigned pixels, rows;  // rows = batch * pixels
  int channels;
  float root;  // of the channels
  bool silu;
};

template <int kCount>
__device__ inline void Silu(float (&values)[kCount]) {
  constexpr float kLog2OfE = 1.4426950408889634f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] *= Inverse(1.0f + PowerOfTwo(-kLog2OfE * values[i]));
  }
}

// kLanes lanes a pixel, each with every kLanes-th 16 bytes of it. A lane keeps the bits that it
// loaded, and not their floats, so that enough threads share a processor to keep its memory busy.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 6 : 4)
    Norm(const __grid_constant__ Problem problem) {
  constexpr int kSteps = kChannelsPerLane / kVec<T>;
  const unsigned row = blockIdx.x * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int first = static_cast<int>(threadIdx.x % kLanes) * kVec<T>;
  // Lanes without a pixel join in the sums, of nothing.
  const int channels = row < problem.rows ? problem.channels : 0;
  const T* x = static_cast<const T*>(problem.x) + int64_t{row} * channels;
  uint4 bits[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int channel = first + i * kLanes * kVec<T>;
    if (channel < channels) bits[i] = FetchOnce(x + channel);
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if (first + i * kLanes * kVec<T> >= channels) continue;
    float values[kVec<T>];
    Unpack(bits[i], values);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) squares += values[j] * values[j];
  }
  const float norm = sqrtf(GroupSum<kLanes>(squares));
  const float factor = problem.root / (norm < 1e-12f ? 1e-12f : norm);  // a NaN stays
  const unsigned item = row / problem.pixels;
  T* out = static_cast<T*>(problem.out) + item * problem.out_stride +
           int64_t{row - item * problem.pixels} * channels;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int channel = first + i * kLanes * kVec<T>;
    if (channel >= channels) continue;
    float values[kVec<T>], gamma[kVec<T>];
    Unpack(bits[i], values);
    Load(static_cast<const T*>(problem.gamma) + channel, gamma);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) values[j] *= factor * gamma[j];
    if (problem.silu) Silu(values);
    Store(out + channel, values);
  }
}

template <typename T, int kLanes>
cudaError_t Launch(const Problem& problem, cudaStream_t stream) {
  constexpr unsigned kPixels = kThreads / kLanes;  // of a block
  const unsigned blocks = problem.rows / kPixels + (problem.rows % kPixels != 0);
  Norm<T, kLanes><<<blocks, kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

template <typename T>
cudaError_t Launch(const Problem& problem, cudaStream_t stream) {
  return problem.channels <= 4 * kChannelsPerLane    ? Launch<T, 4>(problem, stream)
         : problem.channels <= 8 * kChannelsPerLane  ? Launch<T, 8>(problem, stream)
         : problem.channels <= 16 * kChannelsPerLane ? Launch<T, 16>(problem, stream)
                                                     : Launch<T, 32>(problem, stream);
}

}  // namespace

cudaError_t RmsSilu(DType dtype, const void* x, const void* gamma, void* out, int64_t batch,
                    int64_t pixels, int64_t channels, int64_t out_stride, bool silu,
                    cudaStream_t stream) {
  if (!IsKnown(dtype) || batch < 0 || pixels < 0 || channels <= 0 || channels > kMaxChannels ||
      channels * SizeOf(dtype) % 16 != 0 || (pixels > 0 && batch > kMaxRows / pixels) ||
      out_stride * SizeOf(dtype) % 16 != 0 || (batch > 1 && out_stride < pixels * channels)) {
    return cudaErrorInvalidValue;
  }
  if (batch * pixels == 0) return cudaSuccess;
  for (const void* pointer : {x, gamma, static_cast<const void*>(out)}) {
    if (!pointer || !IsAligned(pointer)) return cudaErrorInvalidValue;
  }
  Problem problem{x, gamma, out, out_stride};
  problem.pixels = static_cast<unsigned>(pixels);
  problem.rows = static_cast<unsigned>(batch * pixels);
  problem.channels = static_cast<int>(channels);
  problem.root = sqrtf(static_cast<float>(channels));
  problem.silu = silu;
  return dtype == DType::kFloat ? Launch<float>(problem, stream)
                                : Launch<__nv_bfloat16>(problem, stream);
}

}  // namespace predict2
