// SPDX-License-Identifier: Apache-2.0
#include "predict2/gated_residual_modulate.h"

#include <type_traits>

#include "predict2/adaln_modulate.h"
#include "predict2/norm_row.cuh"

namespace predict2 {
namespace {

struct Problem {
  const void *x, *y, *modulation, *next_modulation;
  void *x_out, *out;
  float* scales;  // of an e4m3 out
  int64_t frames, tokens, width, next_parts;
};

// A block a token. The rounding of each operation is asked for, so that no multiply-add replaces
// it. An Out of void is for the sum alone.
template <typename T, typename Out, int kSteps>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<T>)
    Residual(const __grid_constant__ Problem problem) {
  const auto width = static_cast<int>(problem.width);
  const int64_t frame = blockIdx.x / static_cast<unsigned>(problem.tokens);
  const int64_t row = int64_t{blockIdx.x} * width;
  const T* gates = static_cast<const T*>(problem.modulation) + (3 * frame + 2) * width;
  uint4 x_bits[kSteps], y_bits[kSteps];
  ForEachStep<T, kSteps>(width, [&](int i, int column) {
    x_bits[i] = FetchOnce(static_cast<const T*>(problem.x) + row + column);
    y_bits[i] = FetchOnce(static_cast<const T*>(problem.y) + row + column);
  });
  float x[kSteps][kVec<T>];
  ForEachStep<T, kSteps>(width, [&](int i, int column) {
    float y[kVec<T>], gate[kVec<T>];
    Unpack(x_bits[i], x[i]);
    Unpack(y_bits[i], y);
    Load(gates + column, gate);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) {
      x[i][j] = Round<T>(__fadd_rn(x[i][j], Round<T>(__fmul_rn(gate[j], y[j]))));
    }
    Store(static_cast<T*>(problem.x_out) + row + column, x[i]);
  });
  if constexpr (!std::is_void_v<Out>) {
    ModulateRow<T, kSteps>(
        x, static_cast<const T*>(problem.next_modulation) + frame * problem.next_parts * width,
        static_cast<Out*>(problem.out) + row, problem.scales + blockIdx.x, width);
  }
}

template <typename T, typename Out>
cudaError_t Launch(const Problem& problem, cudaStream_t stream) {
  const auto kernel = problem.width <= kNarrow<T> * kRowThreads * kVec<T>
                          ? Residual<T, Out, kNarrow<T>>
                          : Residual<T, Out, kWide<T>>;
  const auto blocks = static_cast<unsigned>(problem.frames * problem.tokens);
  kernel<<<blocks, kRowThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

enum class Norm { kNone, kSame, kE4m3 };

template <typename T, Norm kNorm>
using Output = std::conditional_t<kNorm == Norm::kNone, void,
                                  std::conditional_t<kNorm == Norm::kE4m3, __nv_fp8_e4m3, T>>;

template <Norm kNorm>
cudaError_t CheckAndLaunch(DType dtype, const Problem& of, cudaStream_t stream) {
  if (!IsKnown(dtype) || of.frames < 0 || of.tokens < 0 || of.width <= 0 || of.width > kMaxWidth ||
      of.width * SizeOf(dtype) % 16 != 0 || of.next_parts < 2 || of.frames * of.tokens > kMaxRows) {
    return cudaErrorInvalidValue;
  }
  if (of.frames * of.tokens == 0) return cudaSuccess;
  for (const void* pointer : {of.x, of.y, of.modulation, static_cast<const void*>(of.x_out)}) {
    if (!pointer || !IsAligned(pointer)) return cudaErrorInvalidValue;
  }
  for (const void* pointer : {of.next_modulation, static_cast<const void*>(of.out)}) {
    if (kNorm != Norm::kNone && (!pointer || !IsAligned(pointer))) return cudaErrorInvalidValue;
  }
  if (kNorm == Norm::kE4m3 && (!of.scales || !IsAligned(of.scales))) return cudaErrorInvalidValue;
  const auto launch = dtype == DType::kFloat ? Launch<float, Output<float, kNorm>>
                                             : Launch<__nv_bfloat16, Output<__nv_bfloat16, kNorm>>;
  return launch(of, stream);
}

}  // namespace

cudaError_t GatedResidualModulate(DType dtype, const void* x, const void* y, const void* modulation,
                                  const void* next_modulation, void* x_out, void* out,
                                  int64_t frames, int64_t tokens, int64_t width, int64_t next_parts,
                                  cudaStream_t stream) {
  return CheckAndLaunch<Norm::kSame>(
      dtype,
      {x, y, modulation, next_modulation, x_out, out, nullptr, frames, tokens, width, next_parts},
      stream);
}

cudaError_t GatedResidualModulateE4m3(DType dtype, const void* x, const void* y,
                                      const void* modulation, const void* next_modulation,
                                      void* x_out, void* out, float* scales, int64_t frames,
                                      int64_t tokens, int64_t width, int64_t next_parts,
                                      cudaStream_t stream) {
  return CheckAndLaunch<Norm::kE4m3>(
      dtype,
      {x, y, modulation, next_modulation, x_out, out, scales, frames, tokens, width, next_parts},
      stream);
}

cudaError_t GatedResidual(DType dtype, const void* x, const void* y, const void* modulation,
                          void* x_out, int64_t frames, int64_t tokens, int64_t width,
                          cudaStream_t stream) {
  return CheckAndLaunch<Norm::kNone>(
      dtype, {x, y, modulation, nullptr, x_out, nullptr, nullptr, frames, tokens, width, 2},
      stream);
}

}  // namespace predict2
