"""The compile gate: every shipped configuration is compiled for every architecture, without a device."""
