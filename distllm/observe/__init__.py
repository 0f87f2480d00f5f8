"""Metrics and the sinks that show them."""
