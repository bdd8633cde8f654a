"""What a check says: one outcome for each promise, and the table of them."""

import dataclasses
from collections.abc import Iterator

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"


class Broken(Exception):
    """Raised by a promise that the subject does not keep; the text says how."""


class NotApplicable(Exception):
    """Raised by a promise that does not concern the subject; the text says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one promise.

    Attributes:
      name: The promise's name, a key of `PROMISES`.
      status: 'pass', 'fail' or 'not applicable'.
      detail: What was measured, what is broken, or why it does not apply.
      seconds: Time spent, compilation included.
    """

    name: str
    status: str
    detail: str
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcomes of one check, in the order in which they ran.

    Attributes:
      subject: Name of what was checked.
      rows: One `Outcome` for each promise.

    Example:
      >>> from optlab import testing
      >>> report = testing.Report("mine", (testing.Outcome("donation", "pass", ""),))
      >>> report.passed, report["donation"].status
      (True, 'pass')
    """

    subject: str
    rows: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no promise failed; those that do not apply count as kept."""
        return not self.failed

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The outcomes of the broken promises."""
        return tuple(row for row in self.rows if row.status == FAIL)

    def __getitem__(self, name: str) -> Outcome:
        """Returns the outcome of the promise of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no promise {name!r} in this report")

    def __iter__(self) -> Iterator[Outcome]:
        """Iterates over the outcomes."""
        return iter(self.rows)

    def __str__(self) -> str:
        """The table: promise, result, detail; one line each, and a line of totals."""
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{row.name:<{width}}  {row.status:<{len(NOT_APPLICABLE)}}  {row.detail}"
            for row in self.rows
        ]
        counts = ", ".join(
            f"{sum(row.status == status for row in self.rows)} {status}"
            for status in (PASS, FAIL, NOT_APPLICABLE)
        )
        return "\n".join(
            line.rstrip() for line in [*lines, f"{self.subject}: {counts}"]
        )

    def raise_for_failures(self) -> None:
        """Raises an AssertionError that names every broken promise, if there is one."""
        if self.failed:
            broken = "\n".join(f"  {row.name}: {row.detail}" for row in self.failed)
            raise AssertionError(f"{self.subject} breaks its promises:\n{broken}")
