"""Every optimizer's state has the bytes that the table of the benchmark states."""

import pytest

from benchmarks import state_bytes

# Shapes alone: nothing of this is allocated.
PARAMS = state_bytes.transformer(512, 8, 2048)
RANK = 64


@pytest.fixture(scope="module")
def lines():
    return {line.name: line for line in state_bytes.measured(PARAMS, RANK)}


@pytest.mark.parametrize("name", state_bytes.claims(RANK))
def test_the_state_has_the_bytes_that_are_stated(lines, name):
    line = lines[name]
    assert line.hidden == pytest.approx(line.stated, abs=state_bytes.TOLERANCE)


def test_precision_halves_and_quarters_the_state_of_adam(lines):
    adam = lines["adamw"].whole
    assert lines["state_precision, 2 bytes"].whole <= 0.5001 * adam
    # With a scale for each block of entries.
    assert lines["state_precision, 1 byte"].whole <= 0.255 * adam
