// SPDX-License-Identifier: Apache-2.0
// The heads of a token in the registers of a warp: read, normalised and turned. What becomes of
// them is each kernel's own.
#pragma once

#include "predict2/order.cuh"
#include "predict2/qk_norm_rope.h"
#include "predict2/reduce.cuh"
#include "predict2/vec.cuh"

namespace predict2 {

constexpr int kHeadThreads = 256;

// What a kernel does to queries, keys or values.
struct Side {
  Heads heads;
  unsigned first_block, rows;  // rows = batch * tokens
  float scale;
  bool rotate;
  const float* shift;  // of codes alone, as are `scales`
  float* scales;
};

struct Problem {
  Side sides[3];  // queries, keys, values: one launch for all
  Rotary rotary;
  unsigned num_heads;
  bool heads_first;
};

// Where a lane is: 16 bytes from `channel` of a head, and those that they turn with. Lanes beyond
// the last head take part in what a warp does together, but store nothing.
struct Place {
  unsigned batch, token, head;
  int channel;
};

// Cosines and sines of the kCount channels from `channel`, at a token's place in the grid. An axis
// may begin at any channel, so these are single loads; the tables are small and stay in the L1.
template <int kCount>
__device__ inline void LoadAngles(const Rotary& rotary, unsigned token, int channel,
                                  float (&cosines)[kCount], float (&sines)[kCount]) {
  const Axis axes[3] = {rotary.frames, rotary.rows, rotary.columns};
  const auto columns = static_cast<unsigned>(axes[2].positions);
  const auto rows = static_cast<unsigned>(axes[1].positions);
  const unsigned position[3] = {token / columns / rows, token / columns % rows, token % columns};
  const float* cosine[3];  // of channel 0, if the axis had it
  int to_sine[3], end[3], begin = 0;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const auto width = static_cast<int>(axes[axis].channels);
    cosine[axis] = axes[axis].table + static_cast<int>(position[axis]) * width - begin;
    to_sine[axis] = static_cast<int>(axes[axis].positions) * width;
    end[axis] = begin += width;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int at = channel + i;
    const float* of = at < end[0] ? cosine[0] : at < end[1] ? cosine[1] : cosine[2];
    const int sine = at < end[0] ? to_sine[0] : at < end[1] ? to_sine[1] : to_sine[2];
    cosines[i] = __ldg(of + at);
    sines[i] = __ldg(of + at + sine);
  }
}

// Turns each pair (x0, x1) by its angle.
template <int kCount>
__device__ inline void Turn(float (&x0)[kCount], float (&x1)[kCount],
                            const float (&cosines)[kCount], const float (&sines)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float turned = x0[i] * cosines[i] - x1[i] * sines[i];
    x1[i] = x1[i] * cosines[i] + x0[i] * sines[i];
    x0[i] = turned;
  }
}

// A warp takes a token, so that its angles, which cost as many instructions as two heads, are found
// once; kLanes lanes take a head, kUnroll of them at a time. Calls finish(side, place, x0, x1) with
// 16 bytes of a head's first half, as floats, and the 16 bytes that these turn with.
template <typename T, int kHeadDim, int kUnroll, typename Finish>
__device__ inline void ForEachHead(const Problem& problem, Finish finish) {
  constexpr float kEps = 1e-6f;
  constexpr int kLanes = kHeadDim / 2 / kVec<T>;
  constexpr unsigned kGroups = 32 / kLanes;
  int index = 0;
  while (index < 2 && blockIdx.x >= problem.sides[index + 1].first_block) ++index;
  const Side& side = problem.sides[index];
  const unsigned row = (blockIdx.x - side.first_block) * (kHeadThreads / 32) + threadIdx.x / 32;
  if (row >= side.rows) return;
  const auto tokens = static_cast<unsigned>(side.heads.tokens);
  const unsigned token = row % tokens, batch = row / tokens;
  const unsigned source = SourceOf(side.heads.order, token, tokens);
  const unsigned lane = threadIdx.x % 32;
  const int channel = static_cast<int>(lane % kLanes) * kVec<T>;
  const T* in = static_cast<const T*>(side.heads.in) +
                int64_t{batch * tokens + source} * side.heads.stride + channel;
  const T* weight = static_cast<const T*>(side.heads.weight) + channel;
  const bool norm = side.heads.weight != nullptr;

  float cosines[kVec<T>], sines[kVec<T>];
  uint4 weights[2] = {};
  if (norm) weights[0] = Fetch(weight), weights[1] = Fetch(weight + kHeadDim / 2);
  if (side.rotate) LoadAngles(problem.rotary, source, channel, cosines, sines);
  for (unsigned first = lane / kLanes; first - lane / kLanes < problem.num_heads;
       first += kGroups * kUnroll) {
    uint4 bits[kUnroll][2] = {};  // all loads before the first store, which might overlap for nvcc
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const T* head = in + (first + u * kGroups) * kHeadDim;
      if (first + u * kGroups >= problem.num_heads) continue;
      bits[u][0] = FetchOnce(head), bits[u][1] = FetchOnce(head + kHeadDim / 2);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
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
      finish(side, Place{batch, token, first + u * kGroups, channel}, x0, x1);
    }
  }
}

// Shares the blocks out among the sides; how many there are.
inline unsigned ShareBlocks(Problem& problem) {
  constexpr unsigned kWarps = kHeadThreads / 32;
  unsigned blocks = 0;
  for (Side& side : problem.sides) {
    side.first_block = blocks;
    blocks += side.rows / kWarps + (side.rows % kWarps != 0);
  }
  return blocks;
}

}  // namespace predict2
