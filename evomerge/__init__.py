"""evomerge: searches for the recipe by which models that share a base merge into one, or into a front of trade-offs."""
