// SPDX-License-Identifier: Apache-2.0
#include "predict2/adaln_modulate.h"

#include <type_traits>

#include "predict2/norm_row.cuh"

namespace predict2 {
namespace {

struct Problem {
  const void *x, *modulation;
  void* out;
  float* scales;  // of an e4m3 out
  int64_t frames, tokens, width, parts;
};

// A block a token. x leaves the caches at once; the frame's modulation is shared and stays.
template <typename T, typename Out, int kSteps>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<T>)
    Modulate(const __grid_constant__ Problem problem) {
  const auto width = static_cast<int>(problem.width);
  const int64_t row = blockIdx.x, frame = blockIdx.x / static_cast<unsigned>(problem.tokens);
  const T* x = static_cast<const T*>(problem.x) + row * width;
  float values[kSteps][kVec<T>];
  ForEachStep<T, kSteps>(width,
                         [&](int i, int column) { Unpack(FetchOnce(x + column), values[i]); });
  ModulateRow<T, kSteps>(values,
                         static_cast<const T*>(problem.modulation) + frame * problem.parts * width,
                         static_cast<Out*>(problem.out) + row * width, problem.scales + row, width);
}

template <typename T, typename Out>
cudaError_t Launch(const Problem& problem, cudaStream_t stream) {
  const auto kernel = problem.width <= kNarrow<T> * kRowThreads * kVec<T>
                          ? Modulate<T, Out, kNarrow<T>>
                          : Modulate<T, Out, kWide<T>>;
  const auto blocks = static_cast<unsigned>(problem.frames * problem.tokens);
  kernel<<<blocks, kRowThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

template <bool kE4m3>
cudaError_t CheckAndLaunch(DType dtype, const Problem& of, cudaStream_t stream) {
  if (!IsKnown(dtype) || of.frames < 0 || of.tokens < 0 || of.width <= 0 || of.width > kMaxWidth ||
      of.width * SizeOf(dtype) % 16 != 0 || of.parts < 2 || of.frames * of.tokens > kMaxRows) {
    return cudaErrorInvalidValue;
  }
  if (of.frames * of.tokens == 0) return cudaSuccess;
  for (const void* pointer : {of.x, of.modulation, static_cast<const void*>(of.out)}) {
    if (!pointer || !IsAligned(pointer)) return cudaErrorInvalidValue;
  }
  if (kE4m3 && (!of.scales || !IsAligned(of.scales))) return cudaErrorInvalidValue;
  using Bf16 = __nv_bfloat16;
  const auto launch = dtype == DType::kFloat
                          ? Launch<float, std::conditional_t<kE4m3, __nv_fp8_e4m3, float>>
                          : Launch<Bf16, std::conditional_t<kE4m3, __nv_fp8_e4m3, Bf16>>;
  return launch(of, stream);
}

}  // namespace

cudaError_t AdalnModulate(DType dtype, const void* x, const void* modulation, void* out,
                          int64_t frames, int64_t tokens, int64_t width, int64_t parts,
                          cudaStream_t stream) {
  return CheckAndLaunch<false>(dtype, {x, modulation, out, nullptr, frames, tokens, width, parts},
                               stream);
}

cudaError_t AdalnModulateE4m3(DType dtype, const void* x, const void* modulation, void* out,
                              float* scales, int64_t frames, int64_t tokens, int64_t width,
                              int64_t parts, cudaStream_t stream) {
  return CheckAndLaunch<true>(dtype, {x, modulation, out, scales, frames, tokens, width, parts},
                              stream);
}

}  // namespace predict2
