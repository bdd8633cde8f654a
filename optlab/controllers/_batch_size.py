"""Batch sizes that grow as the gradient gets lost in the noise of a batch."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from optlab import schedules
from optlab.controllers import _batch_tests, _plain

BATCH_TESTS = ("norm", "inner_product", "augmented")
SCALINGS = ("none", "linear", "sqrt")


class BatchSizeState(NamedTuple):
    """State of `batch_size`: what the next update takes, and what was measured.

    Attributes:
      batch_size: Examples of the next update.
      microbatches: Microbatches that they make up.
      learning_rate: Rate of the next update, or what to multiply a schedule with.
      updates: Updates done.
      samples: Examples that they took: where a schedule of samples stands.
      measured: Updates since the last test that had finite numbers.
      sums: Sums over them of squared norm, variance and variance along the mean.
      since: Updates since the last test.
      history: (samples, batch size) of the start and of each change.
    """

    batch_size: int
    microbatches: int
    learning_rate: float
    updates: int
    samples: int
    measured: int
    sums: tuple[float, float, float]
    since: int
    history: tuple[tuple[int, int], ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BatchSizeState":
        """Makes a state of what `_asdict` gave, be it by way of JSON.

        Args:
          values: The fields by name; lists will do for tuples.

        Raises:
          TypeError: If a field is missing or unknown.
        """
        return cls(**_plain.fields(values))


class BatchSizeController(NamedTuple):
    """A controller of the batch size as a pair of pure functions.

    Attributes:
      init: () -> state.
      step: (state, squared norm, variance, variance along the mean) -> state, after
        each update.
      settings: The arguments that it was made with, by name.
    """

    init: Callable[[], BatchSizeState]
    step: Callable[..., BatchSizeState]
    settings: Mapping[str, Any]

    @property
    def needs_along(self) -> bool:
        """Whether its test uses the variance along the mean gradient."""
        return self.settings["test"] != "norm"


def batch_size(
    initial: int,
    *,
    max_batch_size: int,
    microbatch_size: int,
    test: str = "norm",
    threshold: float = 0.5,
    nu: float = 1.0,
    test_every: int = 10,
    debias: bool = True,
    max_growth: float = 2.0,
    lr_scaling: str = "none",
    learning_rate: float = 1.0,
) -> BatchSizeController:
    """Grows the batch when the gradient is not known well enough.

    Early in a run all examples agree on where to go and small batches do; near the end
    their gradients point in all directions. Every few updates one of three tests
    (`norm_test`, `inner_product_test`, `augmented_test`) asks for a batch size, from
    means of what these updates measured (see `estimators.gradient_statistics`). The
    batch never shrinks. It is made of whole microbatches, whose number alone changes:
    no shape does, so a step is compiled once.

    Nothing runs here; a loop takes updates and reports what it measured:

        state = controller.init()
        while state.samples < total:
            found = gradient_statistics(..., count=state.microbatches)
            update at state.learning_rate * schedule(state.samples)
            state = controller.step(state, found.squared_norm, found.variance)

    The state is a function of these numbers alone, so a run's log gives it back.

    Args:
      initial: First batch size, a multiple of microbatch_size.
      max_batch_size: Largest batch size, another one.
      microbatch_size: Examples in a microbatch.
      test: 'norm', 'inner_product' or 'augmented'.
      threshold: Largest standard deviation of the mean gradient as a share of its
        length: eta of the norm test, theta of the others.
      nu: The same across the gradient, for the augmented test.
      test_every: Updates between tests. With 1 single measurements decide, and since
        the batch never shrinks the noisiest of them does.
      debias: As for `norm_test`.
      max_growth: Largest factor on the batch size in one test; infinite for none. What
        it allows is rounded up to a whole microbatch.
      lr_scaling: How the rate follows the batch size: 'none', 'linear' or 'sqrt'.
      learning_rate: Rate at the first batch size; 1 makes it a factor on a schedule.

    Returns:
      The controller. Its state is numbers and tuples, so that a run can write it down
      as JSON and go on with the same decisions.

    Raises:
      ValueError: If an argument is out of range or unknown.
      TypeError: If a size or test_every is not an int.

    Example:
      >>> from optlab import controllers
      >>> sizes = {"max_batch_size": 256, "microbatch_size": 8}
      >>> controller = controllers.batch_size(
      ...     16, **sizes, test_every=1, lr_scaling="sqrt")
      >>> state = controller.init()
      >>> for _ in range(4):  # a true squared norm of 1 and a variance of 20
      ...     state = controller.step(state, 1 + 20 / state.batch_size, 20.0)
      ...     print(state.batch_size, state.microbatches, round(state.learning_rate, 3))
      32 4 1.414
      64 8 2.0
      80 10 2.236
      80 10 2.236

    Source:
      T. Lau, H. Liu, M. Kolar, "AdAdaGrad: adaptive batch size schemes for adaptive
      gradient methods", 2024, arXiv:2402.11215; read in the authors' code, the paper
      not verified. There it goes with `optimizers.adagrad` and
      `optimizers.adagrad_norm`. Differs from that code: a test uses means over
      test_every updates, not one batch; debias and max_growth; covariances between
      layers count; whole microbatches; the rate may follow.
    """
    settings = dict(locals())
    who = "batch_size"
    for name in ("initial", "max_batch_size", "microbatch_size", "test_every"):
        _plain.require_count(who, name, settings[name])
    for name in ("initial", "max_batch_size"):
        if settings[name] % microbatch_size:
            raise ValueError(
                f"{who}: {name}={settings[name]} is no multiple of"
                f" microbatch_size={microbatch_size}"
            )
    if max_batch_size < initial:
        raise ValueError(
            f"{who}: max_batch_size={max_batch_size} is below initial={initial}"
        )
    if initial < 2:
        raise ValueError(f"{who}: one example has no variance; initial must be above 1")
    for name, value, names in (
        ("test", test, BATCH_TESTS),
        ("lr_scaling", lr_scaling, SCALINGS),
    ):
        if value not in names:
            raise ValueError(f"{who}: {name} must be one of {names}, got {value!r}")
    for name in ("threshold", "nu", "learning_rate"):
        if not 0 < settings[name] < math.inf:
            raise ValueError(
                f"{who}: {name} must be above 0 and finite, got {settings[name]}"
            )
    if not max_growth > 1:
        raise ValueError(f"{who}: max_growth must be above 1, got {max_growth}")
    rule = _Rule(**settings)
    return BatchSizeController(rule.init, rule.step, settings)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The arguments of `batch_size`."""

    initial: int
    max_batch_size: int
    microbatch_size: int
    test: str
    threshold: float
    nu: float
    test_every: int
    debias: bool
    max_growth: float
    lr_scaling: str
    learning_rate: float

    def init(self) -> BatchSizeState:
        n = self.initial
        return BatchSizeState(
            batch_size=n,
            microbatches=n // self.microbatch_size,
            learning_rate=float(self.learning_rate),
            updates=0,
            samples=0,
            measured=0,
            sums=(0.0, 0.0, 0.0),
            since=0,
            history=((0, n),),
        )

    def step(
        self,
        state: BatchSizeState,
        squared_norm: float,
        variance: float,
        along: float | None = None,
    ) -> BatchSizeState:
        """Takes in what an update has measured."""
        if self.test == "norm":
            along = 0.0
        elif along is None:
            raise TypeError(
                f"batch_size: the test {self.test!r} needs the variance along the mean:"
                " step(state, squared_norm, variance, along)"
            )
        numbers = [float(squared_norm), float(variance), float(along)]
        known = all(map(math.isfinite, numbers))
        sums = zip(state.sums, numbers, strict=True)
        state = state._replace(
            updates=state.updates + 1,
            samples=state.samples + state.batch_size,
            measured=state.measured + known,
            sums=tuple(a + b for a, b in sums) if known else state.sums,
            since=state.since + 1,
        )
        return self.tested(state) if state.since == self.test_every else state

    def tested(self, state: BatchSizeState) -> BatchSizeState:
        """Applies the test, and begins to measure anew."""
        n = state.batch_size
        if state.measured:
            # Means of each, not a mean of ratios: the smallest signal would lead that.
            n = self.asked(n, [total / state.measured for total in state.sums])
        count = -(-n // self.microbatch_size)
        state = state._replace(measured=0, sums=(0.0, 0.0, 0.0), since=0)
        if count == state.microbatches:
            return state
        n = count * self.microbatch_size
        return state._replace(
            batch_size=n,
            microbatches=count,
            learning_rate=self.rate(n),
            history=(*state.history, (state.samples, n)),
        )

    def asked(self, n: int, means: list[float]) -> int:
        """Returns the batch size that the test asks for."""
        more = {
            "debias": self.debias,
            # One more example asks for one more microbatch.
            "max_growth": max(self.max_growth, (n + 1.5) / n),
            "max_batch_size": self.max_batch_size,
        }
        if self.test == "norm":
            return _batch_tests.norm_test(n, *means[:2], eta=self.threshold, **more)
        if self.test == "augmented":
            return _batch_tests.augmented_test(
                n, *means, theta=self.threshold, nu=self.nu, **more
            )
        return _batch_tests.inner_product_test(n, *means, theta=self.threshold, **more)

    def rate(self, n: int) -> float:
        """Returns the learning rate at a batch size."""
        rate = float(self.learning_rate)
        if self.lr_scaling == "none":
            return rate
        return schedules.for_batch_size(
            rate, n, tuned_at=self.initial, rule=self.lr_scaling
        )
