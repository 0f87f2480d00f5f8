"""Arithmetic about cost: floating-point operations and hardware peaks."""
