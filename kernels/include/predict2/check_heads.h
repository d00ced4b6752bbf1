// SPDX-License-Identifier: Apache-2.0
// What a launcher can know of heads before the launch.
#pragma once

#include <initializer_list>

#include "predict2/qk_norm_rope.h"

namespace predict2 {

// Of all tokens times heads, a token's stride, a table's elements.
constexpr int64_t kMaxIndex = int64_t{1} << 31;

// Whether sizes, none of them negative, multiply to less than `limit`; never overflows.
inline bool MultiplyBelow(int64_t limit, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size != 0 && product > (limit - 1) / size) return false;
    product *= size;
  }
  return true;
}

// `row` elements a token, `unit` in 16 bytes.
inline bool IsUsable(const Heads& heads, int64_t row, int64_t unit, bool with_weight) {
  return heads.tokens == 0 ||
         (heads.in && heads.out && (heads.weight || !with_weight) && heads.stride >= row &&
          heads.stride < kMaxIndex && heads.stride % unit == 0 && IsAligned(heads.in) &&
          IsAligned(heads.weight) && IsAligned(heads.out) &&
          reinterpret_cast<std::uintptr_t>(heads.order) % 4 == 0 &&
          !(heads.order && heads.out == heads.in));
}

inline bool IsUsable(const Rotary& rotary, int64_t tokens, int64_t head_dim) {
  int64_t positions = 1, channels = 0;
  for (const Axis& axis : {rotary.frames, rotary.rows, rotary.columns}) {
    if (!axis.table || axis.positions < 0 || axis.positions > tokens || axis.channels < 0 ||
        axis.channels > head_dim || !MultiplyBelow(kMaxIndex, {2, axis.positions, axis.channels}) ||
        !MultiplyBelow(kMaxIndex, {positions, axis.positions})) {
      return false;
    }
    positions *= axis.positions, channels += axis.channels;
  }
  return positions == tokens && channels == head_dim / 2;
}

}  // namespace predict2
