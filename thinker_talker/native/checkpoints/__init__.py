"""What is on disk, and how it becomes a model: configuration, weights, precision, tokens, voices."""
