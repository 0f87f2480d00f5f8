"""Norms, rotary positions, gated activations and cross-entropy in Triton: bound by memory, not arithmetic."""
