// SPDX-License-Identifier: Apache-2.0
#include "predict2/adaln_modulate.h"

#include "predict2/norm_row.cuh"

namespace predict2 {
namespace {

// A block a token. x leaves the caches at once; the frame's modulation is shared and stays.
template <typename T, int kSteps>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<T>)
    Modulate(const T* x, const T* modulation, T* out, unsigned tokens, int width, int64_t parts) {
  const int64_t row = blockIdx.x, frame = blockIdx.x / tokens;
  float values[kSteps][kVec<T>];
  ForEachStep<T, kSteps>(
      width, [&](int i, int column) { Unpack(FetchOnce(x + row * width + column), values[i]); });
  ModulateRow<T, kSteps>(values, modulation + frame * parts * width, out + row * width, width);
}

template <typename T>
cudaError_t Launch(const void* x, const void* modulation, void* out, int64_t rows, int64_t tokens,
                   int64_t width, int64_t parts, cudaStream_t stream) {
  const auto kernel =
      width <= kNarrow<T> * kRowThreads * kVec<T> ? Modulate<T, kNarrow<T>> : Modulate<T, kWide<T>>;
  kernel<<<static_cast<unsigned>(rows), kRowThreads, 0, stream>>>(
      static_cast<const T*>(x), static_cast<const T*>(modulation), static_cast<T*>(out),
      static_cast<unsigned>(tokens), static_cast<int>(width), parts);
  return cudaGetLastError();
}

}  // namespace

cudaError_t AdalnModulate(DType dtype, const void* x, const void* modulation, void* out,
                          int64_t frames, int64_t tokens, int64_t width, int64_t parts,
                          cudaStream_t stream) {
  if (!IsKnown(dtype) || frames < 0 || tokens < 0 || width <= 0 || width > kMaxWidth ||
      width * SizeOf(dtype) % 16 != 0 || parts < 2 || frames * tokens > kMaxRows) {
    return cudaErrorInvalidValue;
  }
  if (frames * tokens == 0) return cudaSuccess;
  if (!x || !modulation || !out || !IsAligned(x) || !IsAligned(modulation) || !IsAligned(out)) {
    return cudaErrorInvalidValue;
  }
  const auto launch = dtype == DType::kFloat ? Launch<float> : Launch<__nv_bfloat16>;
  return launch(x, modulation, out, frames * tokens, tokens, width, parts, stream);
}

}  // namespace predict2
