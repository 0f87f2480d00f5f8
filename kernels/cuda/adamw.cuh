// AdamW (Loshchilov & Hutter 2019) of many bf16 tensors in one launch, moments in fp32, no fp32 copy of the
// weights: an update below half a unit in the last place is not lost but applied with its probability.
#pragma once
#include "simt.h"

constexpr int kTensors = 48;       // of a launch: the table below is a kernel argument of at most 4 KiB
constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;   // elements of a block

struct Tensors {
  Bf16* weight[kTensors];
  const Bf16* grad[kTensors];
  float* mean[kTensors];
  float* square[kTensors];
  int64_t size[kTensors];
  int first_block[kTensors + 1];
  unsigned number[kTensors];  // of the tensor among all, which names its random numbers
  int count;
};

struct Rates {
  float lr, beta1, beta2, eps, decay;  // decay = lr * weight_decay
  float correction1, root_correction2;
};

// Philox 4x32-10 (Salmon et al. 2011): four random words of a counter and a key, the same on every device.
__device__ __forceinline__ void philox(unsigned (&counter)[4], unsigned key0, unsigned key1) {
  for (int round = 0; round < 10; ++round) {
    unsigned high0 = __umulhi(0xD2511F53u, counter[0]), low0 = 0xD2511F53u * counter[0];
    unsigned high1 = __umulhi(0xCD9E8D57u, counter[2]), low1 = 0xCD9E8D57u * counter[2];
    unsigned next[4] = {high1 ^ counter[1] ^ key0, low1, high0 ^ counter[3] ^ key1, low0};
    for (int word = 0; word < 4; ++word) counter[word] = next[word];
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

__device__ __forceinline__ float updated(float weight, float grad, float& mean, float& square, const Rates& by) {
  mean = by.beta1 * mean + (1.0f - by.beta1) * grad;
  square = by.beta2 * square + (1.0f - by.beta2) * grad * grad;
  float step = by.lr * (mean / by.correction1) / (sqrt(square) / by.root_correction2 + by.eps);
  return weight - by.decay * weight - step;
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(Tensors tensors, Rates by, unsigned step, unsigned seed) {
  int tensor = 0;
  while (tensor + 1 < tensors.count && int(blockIdx.x) >= tensors.first_block[tensor + 1]) ++tensor;
  int64_t begin = int64_t(int(blockIdx.x) - tensors.first_block[tensor]) * kChunk;
  int64_t end = begin + kChunk < tensors.size[tensor] ? begin + kChunk : tensors.size[tensor];
  Bf16* weight = tensors.weight[tensor];
  const Bf16* grad = tensors.grad[tensor];
  float* mean = tensors.mean[tensor];
  float* square = tensors.square[tensor];
  for (int64_t at = begin + int64_t(threadIdx.x) * 8; at < end; at += kThreads * 8) {
    uint64_t group = uint64_t(at) / 8;  // eight elements share the four words of one counter
    unsigned noise[4] = {unsigned(group), unsigned(group >> 32), tensors.number[tensor], step};
    philox(noise, seed, 0x5EEDu);
    if (at + 8 <= end) {
      Eight weights = *reinterpret_cast<const Eight*>(weight + at);
      Eight grads = *reinterpret_cast<const Eight*>(grad + at);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 m4 = *reinterpret_cast<const float4*>(mean + at + 4 * half);
        float4 v4 = *reinterpret_cast<const float4*>(square + at + 4 * half);
        float m[4] = {m4.x, m4.y, m4.z, m4.w}, v[4] = {v4.x, v4.y, v4.z, v4.w};
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
          int index = 4 * half + lane;
          float value = updated(weights.get(index), grads.get(index), m[lane], v[lane], by);
          weights.set(index, round_stochastic(value, noise[index / 2] >> (16 * (index % 2))));
        }
        *reinterpret_cast<float4*>(mean + at + 4 * half) = {m[0], m[1], m[2], m[3]};
        *reinterpret_cast<float4*>(square + at + 4 * half) = {v[0], v[1], v[2], v[3]};
      }
      *reinterpret_cast<Eight*>(weight + at) = weights;
    } else {
      for (int index = 0; at + index < end; ++index) {
        float value = updated(to_float(weight[at + index]), to_float(grad[at + index]), mean[at + index],
                              square[at + index], by);
        unsigned word = index < 2 ? noise[0] : index < 4 ? noise[1] : index < 6 ? noise[2] : noise[3];
        weight[at + index] = round_stochastic(value, word >> (16 * (index % 2)));
      }
    }
  }
}
