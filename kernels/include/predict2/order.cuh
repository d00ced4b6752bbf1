// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace predict2 {

// The token whose row comes out as `token`. An entry that is no token counts as the last one, so
// that no table makes a kernel read what isn't there.
__device__ inline unsigned SourceOf(const int32_t* order, unsigned token, unsigned tokens) {
  if (!order) return token;
  const auto source = static_cast<unsigned>(__ldg(order + token));
  return source < tokens ? source : tokens - 1;
}

}  // namespace predict2
