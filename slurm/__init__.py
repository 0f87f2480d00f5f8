"""Templates of job scripts, shipped inside the wheel; see docs/clusters.md."""
