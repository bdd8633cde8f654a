"""Methods that move along curves, in float64 NumPy."""

REFERENCES = {}
