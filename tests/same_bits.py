"""Equality of bits, which only XLA at its best keeps from program to program."""

import os

import numpy as np

# What tests/conftest.py tells XLA so that it compiles quickly.
QUICKLY = "--xla_backend_optimization_level=0"


def require(got, wanted):
    """Checks bits; where XLA compiles quickly, two roundings may differ."""
    if QUICKLY in os.environ.get("XLA_FLAGS", ""):
        np.testing.assert_allclose(got, wanted, rtol=3e-7, atol=1e-12)
    else:
        np.testing.assert_array_equal(got, wanted)
