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


ROWS: tuple[Tuned, ...] = (
    Tuned(
        workload="shakespeare",
        optimizer="adamw",
        schedule="linear",
        steps=300,
        rates={"learning_rate": 0.011},
        loss=1.759,
        command=(
            "optlab sweep --workload shakespeare"
            " --chain adamw:b1=0.7,b2=0.99+linear:warmup_steps=40@300"
            " --rates 0.005,0.008,0.011,0.016"
        ),
    ),
    Tuned(
        workload="shakespeare",
        optimizer="muon",
        schedule="linear",
        steps=120,
        rates={"learning_rate": 0.14, "rest.learning_rate": 0.045},
        loss=1.746,
        command=(
            "optlab sweep --workload shakespeare"
            " --chain muon:b1=0.85,rest.b1=0.7,rest.b2=0.99+linear:warmup_steps=0@120"
            " --rates 0.07,0.1,0.14,0.2 --rest-rates 0.02,0.03,0.045,0.06"
        ),
    ),
)


def find(workload: str, optimizer: str, schedule: str) -> Mapping[str, float]:
    """Returns the tuned rates of a chain on a workload; empty if there are none.

    A sweep with the same schedule wins over one with another schedule.
    """
    rows = [
        row for row in ROWS if (row.workload, row.optimizer) == (workload, optimizer)
    ]
    rows.sort(key=lambda row: row.schedule != schedule)
    return rows[0].rates if rows else {}
