// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "predict2/qk_norm_rope.h"

namespace predict2 {

// Cosines and sines of the kVec channels from `channel`, at a token's place in the grid. An axis
// may begin at any channel, so these are single loads; the tables are small and stay in the L1.
template <int kCount>
__device__ inline void LoadAngles(const Rotary& rotary, unsigned token, int channel,
                                  float (&cosines)[kCount], float (&sines)[kCount]) {
  const Axis axes[3] = {rotary.frames, rotary.rows, rotary.columns};
  const auto columns = static_cast<unsigned>(axes[2].positions);
  const auto rows = static_cast<unsigned>(axes[1].positions);
  const int position[3] = {static_cast<int>(token / columns / rows),
                           static_cast<int>(token / columns % rows),
                           static_cast<int>(token % columns)};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float* cosine = nullptr;
    int to_sine = 0, begin = 0;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const auto width = static_cast<int>(axes[axis].channels);
      if (channel + i >= begin) {
        cosine = axes[axis].table + position[axis] * width + (channel + i - begin);
        to_sine = static_cast<int>(axes[axis].positions) * width;
      }
      begin += width;
    }
    cosines[i] = __ldg(cosine);
    sines[i] = __ldg(cosine + to_sine);
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

}  // namespace predict2
