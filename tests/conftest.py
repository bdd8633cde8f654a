"""Settings that must be in place before JAX's backends start.

Eight host devices serve the mesh tests; code that names no device still runs on the
first. Tests run small programs a few times each, so that nearly all of their time is
the compiler's: it is told not to polish. `XLA_FLAGS= pytest` tests what users run, with
the compiler at its best, and so does tests/schedules/test_bits.py for rates. Nothing
else is turned on here: a test that needs 64-bit types enables them for itself.
"""

import itertools
import os
import pathlib

import jax
import pytest

from tests import same_bits

QUICKLY = [
    same_bits.QUICKLY,
    "--xla_cpu_parallel_codegen_split_count=1",
    # Eight devices on few busy processors wait for each other; after 40 seconds, by
    # default, the process is aborted.
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
]
if jax.__version_info__ < (0, 11):
    # A flag that XLA does not know ends the process, and later versions lack this one.
    QUICKLY.append("--xla_cpu_use_fusion_emitters=false")

# Read when the first backend starts, and inherited by the processes of tests.
os.environ.setdefault("XLA_FLAGS", " ".join(QUICKLY))
# Programs in flight share as many threads as there are devices, unless told otherwise:
# one that waits for all devices and the start of the next may then wait for each other.
os.environ.setdefault("NPROC", "24")
jax.config.update("jax_num_cpu_devices", 8)
# Every compiled program takes some memory maps of its own. A process may have 65,530,
# and one that wants more is aborted by the compiler.
MAPS = pathlib.Path("/proc/self/maps")
MANY, LOOK_EVERY = 30_000, 32
_finished = itertools.count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Tests of one file share compiled functions: one worker runs them all, unless they
    # say themselves which belong together.
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named:
        # Workers would not find each other's tests.
        raise pytest.UsageError(f"the name of a test holds an address: {named[0]}")


def pytest_runtest_teardown() -> None:
    if next(_finished) % LOOK_EVERY == 0 and MAPS.exists():
        if MAPS.read_bytes().count(b"\n") > MANY:
            jax.clear_caches()
