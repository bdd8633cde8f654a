"""`--golden-dir DIR`: which folder of reference cases to run, and what they gave."""

import collections
import pathlib

import pytest

from tests.golden import reading


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        metavar="DIR",
        help="run the reference cases (NAME/CASE.npz and .json) below DIR instead of "
        "those in tests/golden/cases",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not reading.stems(_root(config)):
        raise pytest.UsageError(
            f"no golden case (NAME/CASE.npz with NAME/CASE.json) in {_root(config)}"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_stem" in metafunc.fixturenames:
        stems = reading.stems(_root(metafunc.config))
        metafunc.parametrize("golden_stem", stems, ids=map(reading.name, stems))


def _root(config: pytest.Config) -> pathlib.Path:
    # The default covers a run of the whole suite: this file is then read too late for
    # the option to be on the command line.
    given = config.getoption("--golden-dir", default=None)
    return reading.CASES if given is None else config.invocation_params.dir / given


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the worst error of each optimizer, and what could not be compared."""
    records = [
        record
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.getreports(outcome)
        for key, record in report.user_properties
        if key == "golden"
    ]
    if not records:
        return
    terminalreporter.section("golden cases")
    for line in table(records):
        terminalreporter.write_line(line)


def table(records: list[dict]) -> list[str]:
    """Returns the lines of the report: compared, faulty, and not compared cases."""
    rows = collections.defaultdict(list)
    for record in records:
        for m in record["measurements"]:
            rows[record["folder"], m["tolerance"], m["reason"]].append(
                (m["error"], record["case"])
            )
    lines = [f"{'optimizer':<28}{'cases':>6}{'worst error':>13}{'tolerance':>11}"]
    for (folder, tolerance, reason), found in sorted(rows.items()):
        worst, where = max(found)
        verdict = "" if worst <= tolerance else f"  FAILS in {where}"
        note = f"  ({reason})" if reason else ""
        cases = len({case for _, case in found})
        lines.append(
            f"{folder:<28}{cases:>6}{worst:>13.1e}{tolerance:>11.0e}{verdict}{note}"
        )
    for status in ("could not be compared", "not in optlab yet", "no adapter yet"):
        cases = collections.Counter(
            # Whole optimizers are missing there; elsewhere the case matters.
            record["folder" if status == "no adapter yet" else "case"]
            for record in records
            if record["status"] == status
        )
        if cases:
            names = ", ".join(f"{name} ({n})" for name, n in sorted(cases.items()))
            lines.append(f"{cases.total()} {status}: {names.replace(' (1)', '')}")
    return lines
