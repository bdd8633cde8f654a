"""Learning rates found by sweeps: one row for each workload and chain.

A chain whose text gives no learning rate takes it from here. Each row holds the command
that found it.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The best rates of one sweep.

    Attributes:
      workload: Name of the workload.
      optimizer: Name of the optimizer.
      schedule: Name of the schedule that it was swept with.
      steps: Length of the runs.
      rates: The settings found, as a chain's text names them.
      loss: Mean final validation loss over the sweep's seeds, in nats.
      command: What found them.
    """

    workload: str
    optimizer: str
    schedule: str
    steps: int
    rates: Mapping[str, float]
    loss: float
    command: str


ROWS: tuple[Tuned, ...] = ()


def find(workload: str, optimizer: str, schedule: str) -> Mapping[str, float]:
    """Returns the tuned rates of a chain on a workload; empty if there are none.

    A sweep with the same schedule wins over one with another schedule.
    """
    rows = [
        row for row in ROWS if (row.workload, row.optimizer) == (workload, optimizer)
    ]
    rows.sort(key=lambda row: row.schedule != schedule)
    return rows[0].rates if rows else {}
