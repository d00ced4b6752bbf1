// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace predict2 {

// Element type of the activations, modulations and norm weights of one call; they are all the same.
enum class DType : int { kFloat = 0, kBFloat16 = 1 };

inline int64_t SizeOf(DType dtype) {
  return dtype == DType::kFloat ? 4 : 2;
}

inline bool IsKnown(DType dtype) {
  return dtype == DType::kFloat || dtype == DType::kBFloat16;
}

constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;  // of kernels with a block a row

// Kernels move 16 bytes at a time.
inline bool IsAligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

}  // namespace predict2
