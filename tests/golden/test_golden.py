"""Other people's numbers: optlab reproduces the recorded reference cases."""

import dataclasses
import pathlib
from collections.abc import Callable

import pytest

from tests.golden import reading, running, settings


def test_agrees_with_the_reference(
    golden_stem: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    record = {
        "case": reading.name(golden_stem),
        "folder": golden_stem.parent.name,
        "status": "could not be compared",
        "measurements": [],
    }
    record_property("golden", record)
    try:
        measurements = running.run(golden_stem)
    except running.NoAdapterError as error:
        record["status"] = "no adapter yet"
        pytest.skip(str(error))
    except settings.NotInOptlabError as error:
        record["status"] = "not in optlab yet"
        pytest.skip(f"not in optlab yet: {error}")
    record["status"] = "compared"
    record["measurements"] = [dataclasses.asdict(m) for m in measurements]
    wrong = [m for m in measurements if not m.agrees]
    assert measurements and not wrong, "; ".join(
        f"{record['case']}: {m.what} deviates by {m.error:.2e}, tolerance "
        f"{m.tolerance:.0e}"
        for m in wrong
    )
