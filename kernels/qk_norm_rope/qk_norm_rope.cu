// SPDX-License-Identifier: Apache-2.0
#include "predict2/qk_norm_rope.h"

#include "predict2/check_heads.h"
#include "predict2/norm_rope.cuh"

namespace predict2 {
namespace {

// 3 blocks a processor: 80 registers.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kHeadThreads, 3)
    NormRope(const __grid_constant__ Problem problem) {
  ForEachHead<T, kHeadDim, 2>(problem, [&](const Side& side, const Place& at, float (&x0)[kVec<T>],
                                           float (&x1)[kVec<T>]) {
    if (at.head >= problem.num_heads) return;
    // `place` is below kMaxIndex.
    const unsigned tokens = static_cast<unsigned>(side.heads.tokens), heads = problem.num_heads;
    const unsigned place = problem.heads_first ? (at.batch * heads + at.head) * tokens + at.token
                                               : (at.batch * tokens + at.token) * heads + at.head;
    T* out = static_cast<T*>(side.heads.out) + int64_t{place} * kHeadDim + at.channel;
    Store(out, x0);
    Store(out + kHeadDim / 2, x1);
  });
}

template <typename T, int kHeadDim>
cudaError_t Launch(Problem problem, cudaStream_t stream) {
  const unsigned blocks = ShareBlocks(problem);
  NormRope<T, kHeadDim><<<blocks, kHeadThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

template <typename T>
cudaError_t Launch(const Problem& problem, int64_t head_dim, cudaStream_t stream) {
  return head_dim == 32   ? Launch<T, 32>(problem, stream)
         : head_dim == 64 ? Launch<T, 64>(problem, stream)
                          : Launch<T, 128>(problem, stream);
}

}  // namespace

cudaError_t QkNormRope(DType dtype, const Heads& q, const Heads& k, const Heads& v,
                       const Rotary* rotary, int64_t batch, int64_t heads, int64_t head_dim,
                       float q_scale, bool heads_first, cudaStream_t stream) {
  if (!IsKnown(dtype) || batch < 0 || heads < 0 || q.tokens < 0 || k.tokens < 0 || v.tokens < 0 ||
      (head_dim != 32 && head_dim != 64 && head_dim != 128)) {
    return cudaErrorInvalidValue;
  }
  if (batch == 0 || heads == 0 || (q.tokens == 0 && k.tokens == 0 && v.tokens == 0)) {
    return cudaSuccess;
  }
  for (const Heads& of : {q, k, v}) {
    if (!MultiplyBelow(kMaxIndex, {batch, heads, of.tokens})) return cudaErrorInvalidValue;
  }
  const int64_t row = heads * head_dim, unit = 16 / SizeOf(dtype);
  const int64_t rotated = q.tokens ? q.tokens : k.tokens;
  if (!IsUsable(q, row, unit, true) || !IsUsable(k, row, unit, true) ||
      !IsUsable(v, row, unit, false) || (rotary && !IsUsable(*rotary, rotated, head_dim)) ||
      (rotary && k.tokens && k.tokens != rotated)) {
    return cudaErrorInvalidValue;
  }
  Problem problem{};
  if (rotary) problem.rotary = *rotary;
  const auto side = [&](const Heads& of, float scale, bool rotate) {
    return Side{of, 0, static_cast<unsigned>(batch * of.tokens), scale, rotate, nullptr, nullptr};
  };
  problem.sides[0] = side(q, q_scale, rotary != nullptr);
  problem.sides[1] = side(k, 1.0f, rotary != nullptr);
  problem.sides[2] = side(v, 1.0f, false);
  problem.num_heads = static_cast<unsigned>(heads);
  problem.heads_first = heads_first;
  return dtype == DType::kFloat ? Launch<float>(problem, head_dim, stream)
                                : Launch<__nv_bfloat16>(problem, head_dim, stream);
}

}  // namespace predict2
