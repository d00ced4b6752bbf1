// SPDX-License-Identifier: Apache-2.0
// What the launcher can know of its arguments before the launch.
#pragma once

#include "predict2/qk_norm_rope.h"

namespace predict2 {

// `row` elements a token, `unit` in 16 bytes.
inline bool IsUsable(const Heads& heads, int64_t row, int64_t unit, bool with_weight) {
  return heads.tokens == 0 ||
         (heads.in && heads.out && (heads.weight || !with_weight) && heads.stride >= row &&
          heads.stride % unit == 0 && IsAligned(heads.in) && IsAligned(heads.weight) &&
          IsAligned(heads.out));
}

inline bool IsUsable(const Rotary& rotary, int64_t tokens, int64_t head_dim) {
  int64_t positions = 1, channels = 0;
  for (const Axis& axis : {rotary.frames, rotary.rows, rotary.columns}) {
    if (!axis.table || axis.positions < 0 || axis.channels < 0) return false;
    positions *= axis.positions, channels += axis.channels;
  }
  return positions == tokens && channels == head_dim / 2;
}

}  // namespace predict2
