"""A batch that grows while a run goes on: its text, its optimizer, its controller.

    TEST[:key=value,...]

The test is 'norm', 'inner_product' or 'augmented'; the keys are the arguments of
`controllers.batch_size`. Unless the text says otherwise the first batch is a quarter of
the workload's own and the largest one eight times that; microbatches are an eighth.
The chain's learning rate, and its schedule, are for the workload's own batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from optlab import controllers, schedules
from optlab.lab import autolrs, chains, growth, parts, settings, workloads

# The workload's own batch over the microbatch and over the first batch; the largest
# batch over the workload's own.
MICROBATCH, FIRST, LARGEST = 8, 4, 8

# What an update from several microbatches can be given; see `microbatches.train_step`.
SUPPLIED = ("value", "grad", "key")

# Arguments of the controller that other parts of the command line give.
ELSEWHERE = {"test": "comes first, without a key", "learning_rate": "is the chain's"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A chain whose batch grows.

    Attributes:
      chain: The chain, explicit.
      settings: Arguments of `controllers.batch_size`.
      microbatches: Microbatches in the workload's own batch.
    """

    chain: chains.Chain
    settings: Mapping[str, Any]
    microbatches: int

    def __str__(self) -> str:
        own = {k: v for k, v in self.settings.items() if k not in ELSEWHERE}
        part = parts.Part("controllers", self.settings["test"], own)
        return f"{self.chain}, batch size {part}"

    def build(
        self, mesh: jax.sharding.Mesh | None = None
    ) -> tuple[optax.GradientTransformationExtraArgs, growth.Growth]:
        """Builds the optimizer, its rate a number in its state, and the controller.

        Args:
          mesh: Mesh over whose axes the optimizer spreads its work, as for a chain.

        Raises:
          ChainError: If the optimizer or the controller refuses a setting.
        """
        try:
            controller = controllers.batch_size(**self.settings)
        except (TypeError, ValueError) as error:
            raise chains.ChainError(f"chain '{self}': {error}") from error
        _, schedule = self.chain.build(mesh=mesh)
        constant = parts.Part("schedules", "constant", {"warmup_steps": 0})
        tx = autolrs.steerable(dataclasses.replace(self.chain, schedule=constant), mesh)

        def in_microbatches(used: Any) -> Any:
            return schedule(used // self.microbatches)

        return tx, growth.Growth(controller, in_microbatches)


def plan(text: str, chain: chains.Chain, workload: workloads.Workload) -> Plan:
    """Reads how a batch grows and writes down what its text left out.

    Args:
      text: The text.
      chain: The chain to train with, explicit.
      workload: The workload.

    Returns:
      The plan.

    Raises:
      ChainError: If the text cannot be read, a key is unknown, the microbatch does not
        divide the workload's batch, or the optimizer needs more than an update from
        microbatches is given.

    Example:
      >>> from optlab.lab import batch_sizes, chains, workloads
      >>> chain = chains.parse("adamw+cosine").explicit(100)
      >>> planned = batch_sizes.plan("norm", chain, workloads.get("digits"))
      >>> planned.settings["initial"], planned.settings["max_batch_size"]
      (16, 512)
    """
    try:
        part = parts.read("controllers", text.strip())
        if part.name not in controllers.BATCH_TESTS:
            raise ValueError(
                settings.unknown("test", part.name, controllers.BATCH_TESTS)
            )
        _check(part, chain)
        return _whole(part, chain, workload)
    except ValueError as error:
        raise chains.ChainError(f"batch size '{text}': {error}") from None


def _check(part: parts.Part, chain: chains.Chain) -> None:
    settings.check(part.name, controllers.batch_size, part.settings)
    for key, where in ELSEWHERE.items():
        if key in part.settings:
            raise ValueError(f"the {key} {where}")
    row = chain.optimizer.row
    needs = [need for need in row.needs if need not in SUPPLIED]
    if needs:
        raise ValueError(
            f"{row.name} needs {' and '.join(needs)} at each update, which one from"
            " several microbatches is not given"
        )


def _whole(part: parts.Part, chain: chains.Chain, workload: workloads.Workload) -> Plan:
    given = settings.keywords(controllers.batch_size, part.settings)
    examples = len(next(iter(workload.batch(0, 0).values())))
    size = given.get("microbatch_size", max(1, examples // MICROBATCH))
    if not isinstance(size, int) or size < 1 or examples % size:
        raise ValueError(
            f"microbatch_size={size} does not divide the {examples} examples in a batch"
            f" of {workload.name}"
        )
    own = {
        "initial": max(examples // FIRST // size, 2) * size,
        "max_batch_size": LARGEST * examples,
        "microbatch_size": size,
        "test": part.name,
        **given,
    }
    # The chain's rate is for the workload's own batch.
    first, rule = own["initial"], own.get("lr_scaling")
    if rule in ("linear", "sqrt") and isinstance(first, int) and first > 0:
        own["learning_rate"] = schedules.for_batch_size(
            1.0, first, tuned_at=examples, rule=rule
        )
    return Plan(chain, own, examples // size)
