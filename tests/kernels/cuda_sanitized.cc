// The CUDA kernels as host code under AddressSanitizer and UndefinedBehaviorSanitizer: every buffer ends where
// its tensor ends, so an access beyond it stops the program.
#include <cassert>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../../kernels/cuda/adamw.cuh"
#include "../../kernels/cuda/rms_norm.cuh"

static std::mt19937 generator(0);

static std::vector<Bf16> draw(size_t size) {
  std::normal_distribution<float> normal;
  std::vector<Bf16> numbers(size);
  for (Bf16& number : numbers) number = round_nearest(normal(generator));
  return numbers;
}

static void check_adamw() {
  std::vector<int64_t> sizes{1, 7, 8, 0, 9, 8191, 8192, 8200, 20001};
  std::vector<std::vector<Bf16>> weights, grads;
  std::vector<std::vector<float>> means, squares;
  Tensors table{};
  int blocks = 0;
  for (int64_t size : sizes) {
    weights.push_back(draw(size)), grads.push_back(draw(size));
    means.emplace_back(size, 0.0f), squares.emplace_back(size, 0.0f);
  }
  std::vector<std::vector<Bf16>> before = weights;
  for (size_t index = 0; index < sizes.size(); ++index) {
    int place = table.count++;
    table.weight[place] = weights[index].data(), table.grad[place] = grads[index].data();
    table.mean[place] = means[index].data(), table.square[place] = squares[index].data();
    table.size[place] = sizes[index], table.first_block[place] = blocks, table.number[place] = unsigned(index);
    blocks += int((sizes[index] + kChunk - 1) / kChunk);
  }
  table.first_block[table.count] = blocks;
  Rates by{0.01f, 0.9f, 0.95f, 1e-8f, 0.001f, 0.1f, std::sqrt(0.05f)};
  LAUNCH(adamw_kernel, unsigned(blocks), kThreads, nullptr, table, by, 1u, 3u);
  for (size_t index = 0; index < sizes.size(); ++index) {
    for (int64_t at = 0; at < sizes[index]; ++at) {
      float mean = 0, square = 0;
      float wanted = updated(to_float(before[index][at]), to_float(grads[index][at]), mean, square, by);
      assert(mean == means[index][at] && square == squares[index][at]);
      assert(std::fabs(to_float(weights[index][at]) - wanted) <= std::fabs(wanted) / 128);
    }
  }
}

static void check_rms_norm() {
  for (int channels : {8, 24, 2048, 2056}) {
    int rows = 5, parts = 3;
    std::vector<Bf16> x = draw(rows * channels), dy = draw(rows * channels), weight = draw(channels);
    std::vector<Bf16> y(x.size()), dx(x.size());
    std::vector<float> rstd(rows), dweight(parts * channels);
    LAUNCH(rms_norm_kernel, unsigned(rows), kNormThreads, nullptr, x.data(), weight.data(), y.data(), rstd.data(),
           channels, 1e-5f);
    LAUNCH(rms_norm_backward_kernel, unsigned(parts), kNormThreads, nullptr, x.data(), weight.data(), dy.data(),
           rstd.data(), dx.data(), dweight.data(), rows, channels);
    for (Bf16 number : y) assert(finite(to_float(number)));
    for (Bf16 number : dx) assert(finite(to_float(number)));
    for (float number : dweight) assert(finite(number));
  }
}

int main() {
  check_adamw();
  check_rms_norm();
  std::puts("no access outside a tensor");
}
