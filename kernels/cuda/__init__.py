"""Kernels in CUDA C++ through LibTorch's stable ABI, and the same sources as host code for their tests."""
