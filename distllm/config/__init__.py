"""The configuration: what a user sets, and everything derived from it."""
