"""Measuring a model on held-out data."""
