"""Full-precision models: families as data, weights read one tensor at a time."""
