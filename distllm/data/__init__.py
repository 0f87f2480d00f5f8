"""From raw text to packed batches, in an order that is a pure function."""
