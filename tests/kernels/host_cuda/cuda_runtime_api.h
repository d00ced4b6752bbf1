// SPDX-License-Identifier: Apache-2.0
// As much of CUDA as our kernels use, on one CPU thread: the threads of a block are coroutines that
// wait for each other at barriers and shuffles. Says nothing of speed or of races; it runs the
// arithmetic and the indices of the very sources that nvcc compiles.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
typedef struct CUstream_st* cudaStream_t;
inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidValue";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx;

namespace host_cuda {

constexpr size_t kStack = 1 << 16;

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  bool done = false;
};

inline ucontext_t scheduler;
inline std::vector<Thread>* threads;
inline Barrier block_barrier, warp_barriers[32];
inline float exchanged[1024];
inline unsigned of_warp[1024];
inline void (*body)(void*);
inline void* body_data;

inline void Wait(Barrier& barrier, unsigned count) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0, ++barrier.generation;
    return;
  }
  const unsigned self = threadIdx.x;
  while (barrier.generation == generation) swapcontext(&(*threads)[self].context, &scheduler);
}

inline void Enter() {
  const unsigned self = threadIdx.x;
  body(body_data);
  (*threads)[self].done = true;
}

inline void RunBlock(unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = (*threads)[i];
    thread.done = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, Enter, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (unsigned i = 0; i < count; ++i) {
      if ((*threads)[i].done) continue;
      left = true;
      threadIdx.x = i;
      swapcontext(&scheduler, &(*threads)[i].context);
    }
  }
}

// kernel<<<blocks, count, 0, stream>>>(arguments...) is written Launch(kernel, blocks, count, 0,
// stream)(arguments...) before compilation.
template <typename Kernel>
auto Launch(Kernel kernel, unsigned blocks, unsigned count, size_t, cudaStream_t) {
  return [=](auto... arguments) {
    auto call = [&] { kernel(arguments...); };
    body = [](void* data) { (*static_cast<decltype(call)*>(data))(); };
    body_data = &call;
    std::vector<Thread> of_block(count);
    threads = &of_block;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) RunBlock(count);
    threads = nullptr;
  };
}

}  // namespace host_cuda

inline void __syncthreads() {
  host_cuda::Wait(host_cuda::block_barrier, static_cast<unsigned>(host_cuda::threads->size()));
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const unsigned self = threadIdx.x;
  host_cuda::exchanged[self] = value;
  host_cuda::Wait(host_cuda::warp_barriers[self / 32], 32);
  const float other = host_cuda::exchanged[self ^ static_cast<unsigned>(mask)];
  host_cuda::Wait(host_cuda::warp_barriers[self / 32], 32);
  return other;
}

inline unsigned __shfl_xor_sync(unsigned mask, unsigned value, int step) {
  float bits;
  std::memcpy(&bits, &value, 4);
  const float other = __shfl_xor_sync(mask, bits, step);
  std::memcpy(&value, &other, 4);
  return value;
}

inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const unsigned self = threadIdx.x, first = self / 32 * 32;
  host_cuda::of_warp[self] = value;
  host_cuda::Wait(host_cuda::warp_barriers[self / 32], 32);
  unsigned most = 0;
  for (unsigned i = 0; i < 32; ++i) most = std::max(most, host_cuda::of_warp[first + i]);
  host_cuda::Wait(host_cuda::warp_barriers[self / 32], 32);
  return most;
}

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline int __float2int_rn(float value) {
  return std::isnan(value) ? 0 : static_cast<int>(std::nearbyint(value));
}

inline unsigned atomicMax(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = std::max(before, value);
  return before;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}

inline float rsqrtf(float value) {
  return 1.0f / std::sqrt(value);
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
