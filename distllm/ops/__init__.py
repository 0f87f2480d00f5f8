"""The operations models call; each picks the implementation that fits the device."""
