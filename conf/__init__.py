"""Hydra configuration groups, shipped inside the wheel."""
