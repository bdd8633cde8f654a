"""Kronecker-factored methods, in float64 NumPy."""

REFERENCES = {}
