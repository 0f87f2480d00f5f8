"""Kernels and the plain references they are tested against."""
