"""Optimizers and wrappers of the catalogue, and the template, keep every promise."""

import functools

import pytest

from optlab import catalog, testing
from tests import template_optimizer
from tests.conformance import references

ROWS = {
    row.name: row for room in ("optimizers", "wrappers") for row in catalog.rows(room)
}
TEMPLATE = catalog.Row(
    name="adamomentum",
    build=template_optimizer.adamomentum,
    room="optimizers",
    family="adaptive",
    paper=catalog.Paper(
        "Wang et al.",
        "Rethinking Adam: a twofold exponential moving average approach",
        2021,
        "https://arxiv.org/abs/2106.11514",
    ),
    defaults={"learning_rate": 1e-3},
)


# One worker asks all promises of a row: each compiles what it shares only once.
CASES = [
    pytest.param(name, promise, marks=pytest.mark.xdist_group(name))
    for name in (*ROWS, TEMPLATE.name)
    for promise in testing.PROMISES
]


# Row after row: a subject that goes takes its compiled programs with it.
@functools.lru_cache(maxsize=1)
def subject(name):
    row = ROWS.get(name, TEMPLATE).whole()
    # Newton-Schulz multiplies rounding by the slope of its polynomial at zero, M-FAC by
    # its largest eigenvalue over the damping, a projection by the length of the weights
    # over that of the step, a first QR by the condition of random weights.
    slopes = {"mfac": 8, "normalize_and_project": 4, "riemannian_sgd": 4}
    slope = slopes.get(row.name, 4 if row.family == "spectral" else 1)
    return testing.Subject(
        row, reference=references.of_row(row), tolerance=slope * testing.TOLERANCE
    )


@pytest.mark.parametrize(("name", "promise"), CASES)
def test_the_row_keeps_the_promise(name, promise):
    report = testing.check(subject(name), promises=[promise], print=False)
    # Here are eight devices, a row, a reference and every package.
    status = "not applicable" if promise in subject(name).row.exempt else "pass"
    assert [outcome.status for outcome in report] == [status], str(report)
