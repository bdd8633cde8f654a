"""Methods of little memory, in float64 NumPy."""

REFERENCES = {}
