"""Ranks, collectives and the engines that hold the weights."""
