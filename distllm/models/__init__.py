"""Transformer stacks built from one block."""
