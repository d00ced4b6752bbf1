// SPDX-License-Identifier: Apache-2.0
#include "predict2/qk_norm_rope.h"

#include "angles.cuh"
#include "check.h"
#include "predict2/reduce.cuh"
#include "predict2/vec.cuh"

namespace predict2 {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 2;  // heads a lane takes of one token: angles are read once for both
constexpr float kEps = 1e-6f;
constexpr int64_t kMaxWarps = int64_t{1} << 31;

struct Side {
  Heads heads;
  unsigned first_block, rows;  // rows = batch * tokens
  float scale;
  bool rotate;
};

struct Problem {
  Side sides[3];  // queries, keys, values: one launch for all
  Rotary rotary;
  unsigned num_heads, chunks;  // warps a token
  bool heads_first;
};

// A warp takes a token; kLanes of its lanes a head. A lane holds 16 bytes of the head's first half
// and the 16 bytes that these turn with. 3 blocks a processor: 80 registers.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 3) NormRope(const __grid_constant__ Problem problem) {
  constexpr int kLanes = kHeadDim / 2 / kVec<T>;
  constexpr int kGroups = 32 / kLanes;
  int index = 0;
  while (index < 2 && blockIdx.x >= problem.sides[index + 1].first_block) ++index;
  const Side& side = problem.sides[index];
  const unsigned warp = (blockIdx.x - side.first_block) * kWarps + threadIdx.x / 32;
  const unsigned row = warp / problem.chunks;
  if (row >= side.rows) return;
  const auto tokens = static_cast<unsigned>(side.heads.tokens);
  const unsigned token = row % tokens, batch = row / tokens;
  const unsigned lane = threadIdx.x % 32;
  const int channel = static_cast<int>(lane % kLanes) * kVec<T>;
  const T* in = static_cast<const T*>(side.heads.in) + row * side.heads.stride + channel;
  const T* weight = static_cast<const T*>(side.heads.weight) + channel;
  T* out = static_cast<T*>(side.heads.out) + channel;
  const bool norm = side.heads.weight != nullptr;

  float cosines[kVec<T>], sines[kVec<T>];
  uint4 weights[2] = {};
  if (norm) weights[0] = Fetch(weight), weights[1] = Fetch(weight + kHeadDim / 2);
  if (side.rotate) LoadAngles(problem.rotary, token, channel, cosines, sines);
  const unsigned first = warp % problem.chunks * (kGroups * kUnroll) + lane / kLanes;
  uint4 bits[kUnroll][2] = {};  // all loads before the first store, which might overlap for nvcc
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const T* head = in + (first + u * kGroups) * kHeadDim;
    if (first + u * kGroups >= problem.num_heads) continue;
    bits[u][0] = FetchOnce(head), bits[u][1] = FetchOnce(head + kHeadDim / 2);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const unsigned head = first + u * kGroups;
    float x0[kVec<T>], x1[kVec<T>];
    Unpack(bits[u][0], x0), Unpack(bits[u][1], x1);
    if (norm) {
      float w0[kVec<T>], w1[kVec<T>], sum = 0.0f;
      Unpack(weights[0], w0), Unpack(weights[1], w1);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) sum += x0[i] * x0[i] + x1[i] * x1[i];
      const float inverse = rsqrtf(GroupSum<kLanes>(sum) / kHeadDim + kEps) * side.scale;
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) x0[i] *= inverse * w0[i], x1[i] *= inverse * w1[i];
    }
    if (side.rotate) Turn(x0, x1, cosines, sines);
    if (head >= problem.num_heads) continue;  // not before: its lanes join in the sums
    const int64_t place = problem.heads_first
                              ? (int64_t{batch} * problem.num_heads + head) * tokens + token
                              : int64_t{row} * problem.num_heads + head;
    Store(out + place * kHeadDim, x0);
    Store(out + place * kHeadDim + kHeadDim / 2, x1);
  }
}

template <typename T, int kHeadDim>
cudaError_t Launch(Problem problem, cudaStream_t stream) {
  constexpr int kHeadsPerWarp = 32 / (kHeadDim / 2 / kVec<T>)*kUnroll;
  problem.chunks = (problem.num_heads + kHeadsPerWarp - 1) / kHeadsPerWarp;
  unsigned blocks = 0;
  for (Side& side : problem.sides) {
    side.first_block = blocks;
    blocks += static_cast<unsigned>((int64_t{side.rows} * problem.chunks + kWarps - 1) / kWarps);
  }
  NormRope<T, kHeadDim><<<blocks, kThreads, 0, stream>>>(problem);
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
  const int64_t tokens = q.tokens + k.tokens + v.tokens;
  if (!IsKnown(dtype) || batch < 0 || heads < 0 || q.tokens < 0 || k.tokens < 0 || v.tokens < 0 ||
      (head_dim != 32 && head_dim != 64 && head_dim != 128)) {
    return cudaErrorInvalidValue;
  }
  if (batch == 0 || heads == 0 || tokens == 0) return cudaSuccess;
  const int64_t row = heads * head_dim, unit = 16 / SizeOf(dtype);
  const int64_t rotated = q.tokens ? q.tokens : k.tokens;
  if (!IsUsable(q, row, unit, true) || !IsUsable(k, row, unit, true) ||
      !IsUsable(v, row, unit, false) || batch * tokens * heads >= kMaxWarps ||
      (rotary && !IsUsable(*rotary, rotated, head_dim)) ||
      (rotary && k.tokens && k.tokens != rotated)) {
    return cudaErrorInvalidValue;
  }
  Problem problem{};
  if (rotary) problem.rotary = *rotary;
  const auto side = [&](const Heads& of, float scale, bool rotate) {
    return Side{of, 0, static_cast<unsigned>(batch * of.tokens), scale, rotate};
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
