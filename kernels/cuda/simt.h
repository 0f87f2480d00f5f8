// What a kernel here may use, under nvcc as CUDA and under a C++ compiler as the same program on the host.
//
// On the host a block's threads are fibers that run one after another until they wait for each other, and
// blocks follow one another. Shared memory is filled with NaN before a block, so that what is read before it
// was written shows. Not shown on the host: races that need two threads at the same time, and speed.
#pragma once
#include <cstdint>

#ifdef __CUDACC__

#define LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#define SHARED(type, name, size) __shared__ type name[size]
using Stream = cudaStream_t;

#else

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED(type, name, size) \
  static type name[size];        \
  host::poison(name, sizeof name)

struct Index {
  unsigned x;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {

enum class State { ready, at_block_barrier, at_warp_exchange, done };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state;
  void* sanitizer = nullptr;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline void* scheduler_sanitizer = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_size = 0;
inline unsigned current = 0;
inline std::function<void()> body;
inline uint32_t exchanged[1024];

// AddressSanitizer has to be told of every change of stacks.
inline void leaving(void** keep, const void* stack, size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(keep, stack, size);
#else
  (void)keep, (void)stack, (void)size;
#endif
}
inline void arrived(void* kept, const void** stack, size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(kept, stack, size);
#else
  (void)kept, (void)stack, (void)size;
#endif
}

inline void yield(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  leaving(state == State::done ? nullptr : &fiber.sanitizer, scheduler_stack, scheduler_stack_size);
  swapcontext(&fiber.context, &scheduler);
  arrived(fiber.sanitizer, &scheduler_stack, &scheduler_stack_size);
}

inline void entry() {
  arrived(nullptr, &scheduler_stack, &scheduler_stack_size);
  body();
  yield(State::done);
}

inline void resume(unsigned thread) {
  Fiber& fiber = fibers[thread];
  current = threadIdx.x = thread;
  leaving(&scheduler_sanitizer, fiber.stack.data(), fiber.stack.size());
  swapcontext(&scheduler, &fiber.context);
  arrived(scheduler_sanitizer, nullptr, nullptr);
}

inline unsigned count(unsigned from, unsigned to, State state) {
  unsigned found = 0;
  for (unsigned thread = from; thread < to; ++thread) found += fibers[thread].state == state;
  return found;
}

inline void release(unsigned from, unsigned to) {
  for (unsigned thread = from; thread < to; ++thread) fibers[thread].state = State::ready;
}

// What a block's shared memory holds before anything was written to it.
inline std::vector<const void*> poisoned;
inline void poison(void* memory, size_t size) {
  for (const void* seen : poisoned) {
    if (seen == memory) return;
  }
  poisoned.push_back(memory);
  std::memset(memory, 0xFF, size);
}

inline void run_block(unsigned threads) {
  poisoned.clear();
  fibers.resize(threads);
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = fibers[thread];
    fiber.stack.resize(128 << 10);
    fiber.state = State::ready;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
  }
  while (count(0, threads, State::done) < threads) {
    bool moved = false;
    for (unsigned thread = 0; thread < threads; ++thread) {
      if (fibers[thread].state == State::ready) resume(thread), moved = true;
    }
    for (unsigned warp = 0; warp < threads; warp += 32) {
      if (count(warp, warp + 32, State::at_warp_exchange) == 32) release(warp, warp + 32), moved = true;
    }
    if (count(0, threads, State::at_block_barrier) == threads) release(0, threads), moved = true;
    if (!moved) {
      std::fprintf(stderr, "deadlock: not every thread of a block reaches its barrier or exchange\n");
      std::abort();
    }
  }
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, unsigned blocks, unsigned threads, Arguments... arguments) {
  gridDim = {blocks};
  blockDim = {threads};
  body = [=] { kernel(arguments...); };
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = {block};
    run_block(threads);
  }
}

}  // namespace host

#define LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), host::launch(kernel, blocks, threads, __VA_ARGS__))
using Stream = void*;

inline void __syncthreads() { host::yield(host::State::at_block_barrier); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  std::memcpy(&host::exchanged[host::current], &value, sizeof value);
  host::yield(host::State::at_warp_exchange);
  std::memcpy(&value, &host::exchanged[host::current ^ unsigned(mask)], sizeof value);
  host::yield(host::State::at_warp_exchange);
  return value;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
using std::sqrt;
#endif

// bf16 as its bits: the upper half of an fp32 number.
using Bf16 = uint16_t;

__device__ __forceinline__ float to_float(Bf16 bits) { return __uint_as_float(unsigned(bits) << 16); }

__device__ __forceinline__ bool finite(float value) {
  return (__float_as_uint(value) & 0x7F800000u) != 0x7F800000u;
}

// Round to nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ Bf16 round_nearest(float value) {
  unsigned bits = __float_as_uint(value);
  if (value != value) return Bf16((bits >> 16) | 0x40u);
  return Bf16((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Round up with a probability of the distance from below, so that the expected value is the number itself.
// `noise` is uniform in 16 bits.
__device__ __forceinline__ Bf16 round_stochastic(float value, unsigned noise) {
  if (!finite(value)) return round_nearest(value);
  return Bf16((__float_as_uint(value) + (noise & 0xFFFFu)) >> 16);
}

// Eight bf16 numbers, read and written 16 bytes at a time.
struct alignas(16) Eight {
  unsigned pairs[4];

  __device__ __forceinline__ float get(int index) const {
    unsigned pair = pairs[index / 2];
    return __uint_as_float(index % 2 ? pair & 0xFFFF0000u : pair << 16);
  }
  __device__ __forceinline__ void set(int index, Bf16 bits) {
    unsigned& pair = pairs[index / 2];
    pair = index % 2 ? (pair & 0x0000FFFFu) | (unsigned(bits) << 16) : (pair & 0xFFFF0000u) | bits;
  }
};
