// RMSNorm (Zhang & Sennrich 2019) of bf16 rows, statistics in fp32. A block takes a row at a time; the channels
// are a multiple of eight. The weight's gradient is summed by each block over its rows, and over blocks by the
// caller: no atomics, so the same inputs give the same bits.
#pragma once
#include "simt.h"

constexpr int kNormThreads = 256;

// The sum over all threads of a block, known to each.
__device__ __forceinline__ float block_sum(float value) {
  SHARED(float, of_warp, kNormThreads / 32);
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, mask);
  __syncthreads();  // the sums of an earlier call have been read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kNormThreads / 32; ++warp) total += of_warp[warp];
  return total;
}

__global__ void __launch_bounds__(kNormThreads)
    rms_norm_kernel(const Bf16* x, const Bf16* weight, Bf16* y, float* rstd, int channels, float eps) {
  const Eight* row = reinterpret_cast<const Eight*>(x + int64_t(blockIdx.x) * channels);
  const Eight* weights = reinterpret_cast<const Eight*>(weight);
  Eight* out = reinterpret_cast<Eight*>(y + int64_t(blockIdx.x) * channels);
  float squares = 0.0f;
  for (int at = threadIdx.x; at < channels / 8; at += kNormThreads) {
    Eight eight = row[at];
    for (int index = 0; index < 8; ++index) squares += eight.get(index) * eight.get(index);
  }
  float scale = rsqrtf(block_sum(squares) / float(channels) + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  for (int at = threadIdx.x; at < channels / 8; at += kNormThreads) {
    Eight eight = row[at], by = weights[at], result;
    for (int index = 0; index < 8; ++index) {
      result.set(index, round_nearest(eight.get(index) * scale * by.get(index)));
    }
    out[at] = result;
  }
}

__global__ void __launch_bounds__(kNormThreads)
    rms_norm_backward_kernel(const Bf16* x, const Bf16* weight, const Bf16* dy, const float* rstd, Bf16* dx,
                             float* dweight, int rows, int channels) {
  const Eight* weights = reinterpret_cast<const Eight*>(weight);
  float* part = dweight + int64_t(blockIdx.x) * channels;
  for (int at = threadIdx.x; at < channels; at += kNormThreads) part[at] = 0.0f;
  __syncthreads();
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const Eight* in = reinterpret_cast<const Eight*>(x + int64_t(row) * channels);
    const Eight* grad = reinterpret_cast<const Eight*>(dy + int64_t(row) * channels);
    Eight* out = reinterpret_cast<Eight*>(dx + int64_t(row) * channels);
    float scale = rstd[row], along = 0.0f;
    for (int at = threadIdx.x; at < channels / 8; at += kNormThreads) {
      Eight eight = in[at], up = grad[at], by = weights[at];
      for (int index = 0; index < 8; ++index) {
        float normal = eight.get(index) * scale;
        along += up.get(index) * by.get(index) * normal;
        part[8 * at + index] += up.get(index) * normal;
      }
    }
    along = block_sum(along) / float(channels);
    for (int at = threadIdx.x; at < channels / 8; at += kNormThreads) {
      Eight eight = in[at], up = grad[at], by = weights[at], result;
      for (int index = 0; index < 8; ++index) {
        float normal = eight.get(index) * scale;
        result.set(index, round_nearest((up.get(index) * by.get(index) - normal * along) * scale));
      }
      out[at] = result;
    }
  }
}
