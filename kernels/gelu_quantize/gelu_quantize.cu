// SPDX-License-Identifier: Apache-2.0
#include "predict2/gelu_quantize.h"

#include "predict2/approximate.cuh"
#include "predict2/dtype.h"
#include "predict2/norm_row.cuh"

namespace predict2 {
namespace {

using T = __nv_bfloat16;
constexpr int kThreads = 512;
// Steps that hold a row: for the 2B network's 8192 hidden channels, or for kMaxHidden.
constexpr int kNarrowSteps = 8192 / kThreads / kVec<T>;
constexpr int kWideSteps = kMaxHidden / kThreads / kVec<T>;

// x / 2 * (1 + erf(x / sqrt(2))) = max(x, 0) - |x| p, where p = erfc(|x| / sqrt(2)) / 2. The
// logarithm of p is so nearly a parabola that a polynomial and one exponential give p to 5e-6 of
// itself up to 3 and the whole to 6e-7; e4m3 has steps of 2^-3. CUDA's erff takes twice the
// instructions, more than a processor has time for while it waits for memory.
__device__ inline float Gelu(float x) {
  constexpr float kLog2[] = {-0.9999999f,  -1.1512f,       -0.45860988f,   -0.05379016f,
                             0.008412071f, -0.0009031342f, 5.7813722e-05f, -1.6356714e-06f};
  const float magnitude = fabsf(x);
  float exponent = kLog2[7];
#pragma unroll
  for (int i = 6; i >= 0; --i) exponent = exponent * magnitude + kLog2[i];
  return fmaxf(x, 0.0f) - magnitude * PowerOfTwo(exponent);
}

// A block a row, held in registers as floats. 64 registers let two blocks share a processor, so
// that one loads while the other computes.
template <int kSteps>
__global__ void __launch_bounds__(kThreads, 2)
    Quantize(const T* x, __nv_fp8_e4m3* out, float* scales, int width) {
  const int64_t row = blockIdx.x;
  uint4 bits[kSteps];
  ForEachStep<T, kSteps, kThreads>(
      width, [&](int i, int column) { bits[i] = FetchOnce(x + row * width + column); });
  float u[kSteps][kVec<T>];
  unsigned largest_bits = 0;
  ForEachStep<T, kSteps, kThreads>(width, [&](int i, int) {
    Unpack(bits[i], u[i]);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) u[i][j] = Gelu(u[i][j]);
    largest_bits = LargestBits(largest_bits, u[i]);
  });
  StoreRow<T, kSteps, kThreads>(u, largest_bits, out + row * width, scales + row, width);
}

}  // namespace

cudaError_t GeluQuantize(const __nv_bfloat16* x, void* out, float* scales, int64_t rows,
                         int64_t width, cudaStream_t stream) {
  if (rows < 0 || rows > kMaxRows || width <= 0 || width > kMaxHidden || width % kVec<T> != 0) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0) return cudaSuccess;
  if (!x || !out || !scales || !IsAligned(x) || !IsAligned(out) || !IsAligned(scales)) {
    return cudaErrorInvalidValue;
  }
  const auto kernel =
      width <= kNarrowSteps * kThreads * kVec<T> ? Quantize<kNarrowSteps> : Quantize<kWideSteps>;
  kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(x, static_cast<__nv_fp8_e4m3*>(out),
                                                               scales, static_cast<int>(width));
  return cudaGetLastError();
}

}  // namespace predict2
