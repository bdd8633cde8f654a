"""Rates have the same bits however they are computed, with the compiler users have."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
FILES = ("test_phases.py", "test_one_cycle.py", "test_exponential.py")


def test_eager_compiled_and_mapped_rates_have_the_same_bits():
    # The other tests let XLA compile quickly, and forgive it two roundings.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q"]
        + [str(ROOT / "tests" / "schedules" / name) for name in FILES],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
