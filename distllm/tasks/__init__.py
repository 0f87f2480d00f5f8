"""What a model learns: (model, batch) to a summed loss and its weight."""
