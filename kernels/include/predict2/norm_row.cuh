// SPDX-License-Identifier: Apache-2.0
// A block and one row of a tensor [rows, width], held in registers: 16 bytes a thread and step.
#pragma once

#include "predict2/e4m3.cuh"
#include "predict2/reduce.cuh"
#include "predict2/vec.cuh"

namespace predict2 {

constexpr int kRowThreads = 128;

// Blocks that share a processor: 72 registers a thread in bf16, which is what the network runs in.
template <typename T>
constexpr int kRowBlocks = sizeof(T) == 2 ? 7 : 3;

// Calls step(i, column) for each of a thread's at most kSteps places in a row of `width`.
template <typename T, int kSteps, int kThreads = kRowThreads, typename Step>
__device__ inline void ForEachStep(int width, Step step) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int column = (i * kThreads + static_cast<int>(threadIdx.x)) * kVec<T>;
    if (column < width) step(i, column);
  }
}

// `largest_bits` is each thread's own, as LargestBits of what it holds of the row.
template <typename T, int kSteps, int kThreads>
__device__ inline void StoreRow(const float (&row)[kSteps][kVec<T>], unsigned largest_bits,
                                __nv_fp8_e4m3* out, float* scale_out, int width) {
  const float scale = RowScale<kThreads>(largest_bits), inverse = 1.0f / scale;
  if (threadIdx.x == 0) *scale_out = scale;
  ForEachStep<T, kSteps, kThreads>(
      width, [&](int i, int column) { Store(out + column, row[i], inverse); });
}

// out = layer_norm(x) * (1 + scale) + shift; two passes, so that a large mean cancels exactly.
// `modulation` is the row's own, read by every token of the frame and so from the L1. `scale_out`
// is that of a row of e4m3, which needs x for its values.
template <typename T, int kSteps, typename Out>
__device__ inline void ModulateRow(float (&x)[kSteps][kVec<T>], const T* modulation, Out* out,
                                   float* scale_out, int width) {
  constexpr float kEps = 1e-6f;
  __shared__ float partial[2][kRowThreads / 32];
  float sum = 0.0f;
  ForEachStep<T, kSteps>(width, [&](int i, int) {
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) sum += x[i][j];
  });
  const float mean = BlockSum<kRowThreads>(sum, partial[0]) / width;
  float squares = 0.0f;
  ForEachStep<T, kSteps>(width, [&](int i, int) {
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) squares += (x[i][j] - mean) * (x[i][j] - mean);
  });
  const float inverse = rsqrtf(BlockSum<kRowThreads>(squares, partial[1]) / width + kEps);
  unsigned largest_bits = 0;
  ForEachStep<T, kSteps>(width, [&](int i, int column) {
    float shift[kVec<T>], scale[kVec<T>];
    Load(modulation + column, shift);
    Load(modulation + width + column, scale);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) {
      x[i][j] = (x[i][j] - mean) * inverse * (1.0f + scale[j]) + shift[j];
    }
    if constexpr (kIsE4m3<Out>) {
      largest_bits = LargestBits(largest_bits, x[i]);
    } else {
      Store(out + column, x[i]);
    }
  });
  if constexpr (kIsE4m3<Out>) {
    StoreRow<T, kSteps, kRowThreads>(x, largest_bits, out, scale_out, width);
  }
}

// Steps that hold a row: for the 2B network's 2048 channels, or for kMaxWidth.
template <typename T>
constexpr int kNarrow = 2048 / kRowThreads / kVec<T>;
template <typename T>
constexpr int kWide = 5120 / kRowThreads / kVec<T>;

}  // namespace predict2
