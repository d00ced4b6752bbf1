// SPDX-License-Identifier: Apache-2.0
#include "predict2/check_heads.h"
#include "predict2/int8.cuh"
#include "predict2/norm_rope.cuh"
#include "predict2/qkv_prep.h"

namespace predict2 {
namespace {

using T = __nv_bfloat16;

template <typename Code>
constexpr float kLargest = kIsE4m3<Code> ? kLargestE4m3 : kLargestInt8;

__device__ inline void Subtract(float (&x)[kVec<T>], const float* shift) {
#pragma unroll
  for (int i = 0; i < kVec<T>; i += kVec<float>) {
    float some[kVec<float>];
    Load(shift + i, some);
#pragma unroll
    for (int j = 0; j < kVec<float>; ++j) x[i + j] -= some[j];
  }
}

// 3 blocks a processor: 80 registers.
template <typename Code>
__global__ void __launch_bounds__(kHeadThreads, 3)
    QkPrepare(const __grid_constant__ Problem problem) {
  constexpr int kHalf = kPrepHeadDim / 2;
  ForEachHead<T, kPrepHeadDim, 1>(
      problem, [&](const Side& side, const Place& at, float (&x0)[kVec<T>], float (&x1)[kVec<T>]) {
        const bool exists = at.head < problem.num_heads;
        if (side.shift && exists) {
          const float* shift = side.shift + int64_t{at.head} * kPrepHeadDim + at.channel;
          Subtract(x0, shift), Subtract(x1, shift + kHalf);
        }
        const unsigned largest_bits = LargestBits(LargestBits(0, x0), x1);
        const float scale = ScaleOf(GroupMax<kHalf / kVec<T>>(largest_bits), kLargest<Code>);
        if (!exists) return;
        // `place` is below kMaxIndex.
        const auto tokens = static_cast<unsigned>(side.heads.tokens);
        const unsigned place = (at.batch * problem.num_heads + at.head) * tokens + at.token;
        Code* out = static_cast<Code*>(side.heads.out) + place * kPrepHeadDim + at.channel;
        Store(out, x0, 1.0f / scale);
        Store(out + kHalf, x1, 1.0f / scale);
        if (at.channel == 0) side.scales[place] = scale;
      });
}

bool IsUsable(const CodedHeads& coded, int64_t row) {
  return IsUsable(coded.heads, row, kVec<T>, true) && IsAligned(coded.scales) &&
         IsAligned(coded.shift) && (coded.scales || coded.heads.tokens == 0);
}

template <typename Code>
cudaError_t Launch(Problem problem, cudaStream_t stream) {
  const unsigned blocks = ShareBlocks(problem);
  QkPrepare<Code><<<blocks, kHeadThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

}  // namespace

cudaError_t QkPrep(Codes codes, const CodedHeads& q, const CodedHeads& k, const Rotary* rotary,
                   int64_t batch, int64_t heads, float q_scale, cudaStream_t stream) {
  const int64_t tokens = q.heads.tokens ? q.heads.tokens : k.heads.tokens;
  if ((codes != Codes::kInt8 && codes != Codes::kE4m3) || batch < 0 || heads < 0 ||
      q.heads.tokens < 0 || k.heads.tokens < 0) {
    return cudaErrorInvalidValue;
  }
  if (batch == 0 || heads == 0 || tokens == 0) return cudaSuccess;
  for (const CodedHeads& of : {q, k}) {
    if (!MultiplyBelow(kMaxIndex, {batch, heads, of.heads.tokens}) ||
        !IsUsable(of, heads * kPrepHeadDim) ||
        (rotary && of.heads.tokens && !IsUsable(*rotary, of.heads.tokens, kPrepHeadDim))) {
      return cudaErrorInvalidValue;
    }
  }
  Problem problem{};
  if (rotary) problem.rotary = *rotary;
  const auto side = [&](const CodedHeads& of, float scale) {
    const auto rows = static_cast<unsigned>(batch * of.heads.tokens);
    return Side{of.heads, 0, rows, scale, rotary != nullptr, of.shift, of.scales};
  };
  problem.sides[0] = side(q, q_scale);
  problem.sides[1] = side(k, 1.0f);
  problem.num_heads = static_cast<unsigned>(heads);
  return codes == Codes::kE4m3 ? Launch<__nv_fp8_e4m3>(problem, stream)
                               : Launch<int8_t>(problem, stream);
}

}  // namespace predict2
