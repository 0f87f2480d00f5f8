// The operators, through LibTorch's stable ABI: one library serves every later torch of the same major version.
// nvcc registers them for CUDA; a C++ compiler registers the same code for the CPU, as its test.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "adamw.cuh"
#include "rms_norm.cuh"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

static Stream stream_of(const Tensor& tensor) {
#ifdef __CUDACC__
  auto stream = torch::stable::accelerator::getCurrentStream(tensor.get_device_index());
  return static_cast<cudaStream_t>(stream.nativeHandle());
#else
  (void)tensor;
  return nullptr;
#endif
}

static void launched() {
#ifdef __CUDACC__
  cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "launch failed: ", cudaGetErrorString(error));
#endif
}

static void check(const Tensor& tensor, const char* name, ScalarType dtype, int64_t numel) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has another dtype than the kernel computes with");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == numel, name, " has ", tensor.numel(), " elements, expected ", numel);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0, name,
                  " must start at a multiple of 16 bytes");
}

static void adamw(std::vector<Tensor> weights, std::vector<Tensor> grads, std::vector<Tensor> means,
                  std::vector<Tensor> squares, double lr, double beta1, double beta2, double eps,
                  double weight_decay, int64_t step, int64_t seed) {
  STD_TORCH_CHECK(grads.size() == weights.size() && means.size() == weights.size() &&
                      squares.size() == weights.size(),
                  "adamw: weights, grads, means and squares must be lists of the same length");
  STD_TORCH_CHECK(step >= 1, "adamw: step is ", step, "; the first is 1");
  Rates by{float(lr), float(beta1), float(beta2), float(eps), float(lr * weight_decay),
           float(1.0 - std::pow(beta1, double(step))), float(std::sqrt(1.0 - std::pow(beta2, double(step))))};
  for (size_t first = 0; first < weights.size(); first += kTensors) {
    Tensors table{};
    int64_t blocks = 0;
    for (size_t index = first; index < weights.size() && index < first + kTensors; ++index) {
      int64_t numel = weights[index].numel();
      check(weights[index], "adamw: a weight", ScalarType::BFloat16, numel);
      check(grads[index], "adamw: a gradient", ScalarType::BFloat16, numel);
      check(means[index], "adamw: a first moment", ScalarType::Float, numel);
      check(squares[index], "adamw: a second moment", ScalarType::Float, numel);
      int place = table.count++;
      table.weight[place] = static_cast<Bf16*>(weights[index].mutable_data_ptr());
      table.grad[place] = static_cast<const Bf16*>(grads[index].const_data_ptr());
      table.mean[place] = static_cast<float*>(means[index].mutable_data_ptr());
      table.square[place] = static_cast<float*>(squares[index].mutable_data_ptr());
      table.size[place] = numel;
      table.number[place] = unsigned(index);
      table.first_block[place] = int(blocks);
      blocks += (numel + kChunk - 1) / kChunk;
    }
    table.first_block[table.count] = int(blocks);
    STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "adamw: too many elements for one launch");
    if (blocks == 0) continue;
    LAUNCH(adamw_kernel, unsigned(blocks), kThreads, stream_of(weights[first]), table, by, unsigned(step),
           unsigned(seed));
    launched();
  }
}

static void check_rows(const Tensor& x, const Tensor& weight, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2, name, " must have two axes, rows and channels");
  check(x, name, ScalarType::BFloat16, x.numel());
  check(weight, "rms_norm: weight", ScalarType::BFloat16, x.size(1));
  STD_TORCH_CHECK(x.size(1) % 8 == 0, "rms_norm: ", x.size(1), " channels are not a multiple of 8");
}

static std::tuple<Tensor, Tensor> rms_norm(Tensor x, Tensor weight, double eps) {
  check_rows(x, weight, "rms_norm: x");
  Tensor y = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float);
  if (x.size(0) > 0) {
    LAUNCH(rms_norm_kernel, unsigned(x.size(0)), kNormThreads, stream_of(x),
           static_cast<const Bf16*>(x.const_data_ptr()), static_cast<const Bf16*>(weight.const_data_ptr()),
           static_cast<Bf16*>(y.mutable_data_ptr()), static_cast<float*>(rstd.mutable_data_ptr()),
           int(x.size(1)), float(eps));
    launched();
  }
  return {y, rstd};
}

// The weight's gradient comes as one row for each of `parts` blocks, to be summed.
static std::tuple<Tensor, Tensor> rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd,
                                                    int64_t parts) {
  check_rows(x, weight, "rms_norm: x");
  check_rows(dy, weight, "rms_norm: dy");
  check(dy, "rms_norm: dy", ScalarType::BFloat16, x.numel());
  check(rstd, "rms_norm: rstd", ScalarType::Float, x.size(0));
  STD_TORCH_CHECK(parts >= 1, "rms_norm: parts is ", parts);
  Tensor dx = torch::stable::empty_like(x);
  Tensor dweight = torch::stable::new_empty(x, {parts, x.size(1)}, ScalarType::Float);
  LAUNCH(rms_norm_backward_kernel, unsigned(parts), kNormThreads, stream_of(x),
         static_cast<const Bf16*>(x.const_data_ptr()), static_cast<const Bf16*>(weight.const_data_ptr()),
         static_cast<const Bf16*>(dy.const_data_ptr()), static_cast<const float*>(rstd.const_data_ptr()),
         static_cast<Bf16*>(dx.mutable_data_ptr()), static_cast<float*>(dweight.mutable_data_ptr()),
         int(x.size(0)), int(x.size(1)));
  launched();
  return {dx, dweight};
}

STABLE_TORCH_LIBRARY(distllm_cuda, m) {
  m.def(
      "adamw(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] means, Tensor(c!)[] squares, float lr, "
      "float beta1, float beta2, float eps, float weight_decay, int step, int seed) -> ()");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, int parts) -> (Tensor, Tensor)");
}

#ifdef __CUDACC__
STABLE_TORCH_LIBRARY_IMPL(distllm_cuda, CUDA, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(distllm_cuda, CPU, m) {
#endif
  m.impl("adamw", TORCH_BOX(&adamw));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}
