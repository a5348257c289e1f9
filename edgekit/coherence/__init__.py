"""Does a model still say what the full-precision model said? Sealed reference, metrics, gates. Needs numpy alone."""
