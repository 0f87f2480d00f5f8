"""Flash attention in Triton: forward and a backward pass without atomics, so deterministic."""
