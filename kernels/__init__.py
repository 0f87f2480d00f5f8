"""Kernels and the plain references they are proven against."""
