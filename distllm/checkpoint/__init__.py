"""Saved state that can be trusted, free of the topology that wrote it."""
