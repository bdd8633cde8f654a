"""Methods that measure curvature, in float64 NumPy."""

REFERENCES = {}
