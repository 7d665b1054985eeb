"""HOW gradients meet: portions of the flat gradient, their order, and their all-reduce."""
