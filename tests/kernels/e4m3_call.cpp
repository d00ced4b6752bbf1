// SPDX-License-Identifier: Apache-2.0
// The kernels' own stores of e4m3, for any values.
#include <cstring>

#include "predict2/e4m3.cuh"

// count is a multiple of kCount.
template <int kCount>
static void StoreAll(const float* values, unsigned char* out, long count) {
  for (long i = 0; i < count; i += kCount) {
    float some[kCount];
    std::memcpy(some, values + i, sizeof(some));
    predict2::Store(reinterpret_cast<__nv_fp8_e4m3*>(out + i), some, 1.0f);
  }
}

extern "C" void host_store_e4m3(const float* values, unsigned char* out, long count, int by_eight) {
  (by_eight ? StoreAll<8> : StoreAll<4>)(values, out, count);
}
