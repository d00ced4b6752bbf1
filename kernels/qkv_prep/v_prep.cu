// SPDX-License-Identifier: Apache-2.0
#include "predict2/check_heads.h"
#include "predict2/e4m3.cuh"
#include "predict2/order.cuh"
#include "predict2/qkv_prep.h"

namespace predict2 {
namespace {

using T = __nv_bfloat16;
constexpr int kThreads = 256;
constexpr int kLanes = kPrepHeadDim / kVec<T>;  // that read a token's head
constexpr int kGroups = kThreads / kLanes;      // of lanes, a token each
constexpr int kTile = 128;                      // tokens that a block transposes
constexpr int kCounted = 512;                   // tokens of which a block finds the largest values
constexpr int kUnroll = 8;                      // tokens that a thread has under way

struct Problem {
  const T* in;
  const int32_t* order;
  float* scales;
  uint8_t* out;
  int64_t stride, padded;
  unsigned tokens, heads, parts;  // blocks that share a head's tokens
};

// A block's: blocks side by side take the heads of the same tokens, which are so in memory.
struct Part {
  const T* in;       // of the thread's lane, of token 0
  int64_t channels;  // before the head's first, of all heads and batches
  unsigned first;    // token
};

template <int kTokens>
__device__ inline Part PartOf(const Problem& problem) {
  const unsigned head = blockIdx.x % problem.heads, rest = blockIdx.x / problem.heads;
  const unsigned batch = rest / problem.parts;
  const unsigned channel = threadIdx.x % kLanes * kVec<T>;
  return {
      problem.in + int64_t{batch} * problem.tokens * problem.stride + head * kPrepHeadDim + channel,
      (int64_t{batch} * problem.heads + head) * kPrepHeadDim, rest % problem.parts * kTokens};
}

// A block takes kCounted tokens of a head. `scales` begin as zeros. The maximum over blocks is that
// of the bits of a float, which no order of blocks changes.
__global__ void __launch_bounds__(kThreads, 4) Largest(const __grid_constant__ Problem problem) {
  const Part part = PartOf<kCounted>(problem);
  const unsigned group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  unsigned largest[kVec<T>] = {};
  for (unsigned i = 0; i < kCounted; i += kUnroll * kGroups) {
    uint4 bits[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const unsigned token = part.first + i + u * kGroups + group;
      if (token < problem.tokens) bits[u] = Fetch(part.in + token * problem.stride);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float x[kVec<T>];
      Unpack(bits[u], x);
#pragma unroll
      for (int j = 0; j < kVec<T>; ++j) {
        const float one[1] = {x[j]};
        largest[j] = LargestBits(largest[j], one);
      }
    }
  }
  __shared__ unsigned partial[kGroups][kPrepHeadDim];
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) partial[group][lane * kVec<T> + j] = largest[j];
  __syncthreads();
  if (threadIdx.x >= kPrepHeadDim) return;
  unsigned most = 0;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    most = partial[i][threadIdx.x] > most ? partial[i][threadIdx.x] : most;
  }
  // Dividing keeps order, so it may come before the maximum over blocks.
  atomicMax(reinterpret_cast<unsigned*>(problem.scales) + part.channels + threadIdx.x,
            __float_as_uint(ScaleOf(most, kLargestE4m3)));
}

// A block transposes kTile tokens of a head. A thread turns 8 channels of 4 tokens into a word a
// channel, twice; `tile` has a row of words for every channel, its 16 bytes in an order that
// spreads the words of neighbouring lanes over the banks.
__global__ void __launch_bounds__(kThreads, 4) Transpose(const __grid_constant__ Problem problem) {
  constexpr int kWords = kTile / 4 / kGroups;
  constexpr int kChunks = kTile / 16;
  __shared__ uint4 tile[kPrepHeadDim][kChunks];
  const Part part = PartOf<kTile>(problem);
  const unsigned group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  uint4 bits[kWords][4] = {};
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const unsigned token = part.first + (w * kGroups + group) * 4 + t;
      if (token >= problem.tokens) continue;
      const unsigned source = SourceOf(problem.order, token, problem.tokens);
      bits[w][t] = FetchOnce(part.in + source * problem.stride);
    }
  }
  float inverse[kVec<T>];
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) {
    inverse[j] = 1.0f / __ldg(problem.scales + part.channels + lane * kVec<T> + j);
  }
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const unsigned word = w * kGroups + group;
    const unsigned begin = part.first + word * 4;
    const unsigned left = begin < problem.tokens ? problem.tokens - begin : 0;
    const unsigned kept = left >= 4 ? ~0u : (1u << 8 * left) - 1;  // zeros whatever the scale
    float x[4][kVec<T>];
#pragma unroll
    for (int t = 0; t < 4; ++t) Unpack(bits[w][t], x[t]);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) {
      const float by = inverse[j];
      auto* row = reinterpret_cast<unsigned*>(&tile[lane * kVec<T> + j][word / 4 ^ lane % kChunks]);
      row[word % 4] = ToE4m3(x[0][j] * by, x[1][j] * by, x[2][j] * by, x[3][j] * by) & kept;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPrepHeadDim * kChunks / kThreads; ++i) {
    const unsigned index = i * kThreads + threadIdx.x;
    const unsigned channel = index / kChunks, chunk = index % kChunks;
    const int64_t token = int64_t{part.first} + chunk * 16;
    if (token >= problem.padded) continue;
    *reinterpret_cast<uint4*>(problem.out + (part.channels + channel) * problem.padded + token) =
        tile[channel][chunk ^ channel / kVec<T> % kChunks];
  }
}

bool IsBelowZero(const Values& v) {
  return v.batch < 0 || v.tokens < 0 || v.heads < 0;
}

bool IsEmpty(const Values& v) {
  return v.batch == 0 || v.tokens == 0 || v.heads == 0;
}

bool IsUsable(const Values& v, const int32_t* order, void* out) {
  const Heads heads{v.in, nullptr, out, v.tokens, v.stride, order};
  return MultiplyBelow(kMaxIndex, {v.batch, v.heads, v.tokens}) && v.scales &&
         IsAligned(v.scales) && IsUsable(heads, v.heads * kPrepHeadDim, kVec<T>, false);
}

Problem ProblemOf(const Values& v, const int32_t* order, void* out, int64_t tokens_of_block) {
  return {static_cast<const T*>(v.in),
          order,
          v.scales,
          static_cast<uint8_t*>(out),
          v.stride,
          PaddedTokens(v.tokens),
          static_cast<unsigned>(v.tokens),
          static_cast<unsigned>(v.heads),
          static_cast<unsigned>((v.tokens + tokens_of_block - 1) / tokens_of_block)};
}

unsigned Blocks(const Values& v, const Problem& problem) {
  return static_cast<unsigned>(v.batch * v.heads) * problem.parts;
}

}  // namespace

cudaError_t VScales(const Values& v, cudaStream_t stream) {
  if (IsBelowZero(v)) return cudaErrorInvalidValue;
  if (IsEmpty(v)) return cudaSuccess;
  if (!IsUsable(v, nullptr, v.scales)) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(v.batch * v.heads * kPrepHeadDim) * sizeof(float);
  const cudaError_t error = cudaMemsetAsync(v.scales, 0, bytes, stream);
  if (error != cudaSuccess) return error;
  const Problem problem = ProblemOf(v, nullptr, nullptr, kCounted);
  Largest<<<Blocks(v, problem), kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

cudaError_t VPrep(const Values& v, const int32_t* order, void* out, cudaStream_t stream) {
  if (IsBelowZero(v)) return cudaErrorInvalidValue;
  if (IsEmpty(v)) return cudaSuccess;
  if (!IsUsable(v, order, out)) return cudaErrorInvalidValue;
  const Problem problem = ProblemOf(v, order, out, kTile);
  Transpose<<<Blocks(v, problem), kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

}  // namespace predict2
