"""Handing a trained model to other software."""
