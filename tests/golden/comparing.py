"""The three ways to hold optlab against a case: trajectory, curve, images."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.golden import reading

# Two correct float64 implementations that round in different orders agree to about
# 1e-12 of the distance moved; 1e-10 leaves room for a long trajectory.
FLOAT64 = 1e-10


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How far optlab is from the reference in one respect.

    Attributes:
      what: What was compared and where the largest error is.
      error: Largest relative error; infinite if a value is not finite.
      tolerance: Largest error that counts as agreement.
      reason: Why the tolerance is not `FLOAT64`, or what was left out.
    """

    what: str
    error: float
    tolerance: float
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """True within the tolerance; an error that is not a number never is."""
        return self.error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Feeds the recorded gradients to `tx` and compares parameters after each step."""

    tx: optax.GradientTransformation
    tolerance: float = FLOAT64
    reason: str = ""

    def measure(self, case: reading.Case) -> list[Measurement]:
        """Measures against the distance each parameter has moved from its start."""

        def step(carry, grads):
            params, state = carry
            updates, state = self.tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        @jax.jit
        def run(params, grads):
            return jax.lax.scan(step, (params, self.tx.init(params)), grads)[1]

        if not case.steps:
            raise reading.FaultyCaseError(f"{case.name}: no step is recorded")
        init = case.init
        got = run(*jax.tree.map(jnp.asarray, (init, case.grads)))
        errors = {
            (t, key): relative_error(
                np.asarray(got[key][t]), expected[t], largest(expected[t] - init[key])
            )
            for key, expected in case.params.items()
            for t in range(case.steps)
        }
        return [self._worst(errors)]

    def _worst(self, errors: Mapping[tuple[int, str], float]) -> Measurement:
        worst = max(errors, key=lambda at: errors[at])
        what = f"'{worst[1]}' after step {worst[0]}"
        beyond = [at for at in sorted(errors) if not errors[at] <= self.tolerance]
        if beyond:
            what += f" (first beyond tolerance: '{beyond[0][1]}', step {beyond[0][0]})"
        return Measurement(what, errors[worst], self.tolerance, self.reason)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Compares a schedule with the recorded rates of steps 0 .. stop - 1."""

    schedule: optax.Schedule
    stop: int | None = None
    tolerance: float = FLOAT64
    reason: str = ""

    def measure(self, case: reading.Case) -> list[Measurement]:
        """Measures against the largest recorded rate."""
        expected = case.arrays["values"][: self.stop]
        if len(expected) < 2:
            raise reading.FaultyCaseError(
                f"{case.name}: {len(expected)} of {len(case.arrays['values'])} rates "
                "are in the domain where the two can be compared"
            )
        # Integers of the default width: of int32 counts float32 rates are made.
        counts = jnp.arange(len(expected))
        got = np.asarray(jax.vmap(self.schedule)(counts))
        at = int(np.argmax(np.abs(got - expected)))
        error = relative_error(got, expected, largest(expected))
        what = f"steps 0 to {len(expected) - 1}, worst at {at}"
        return [Measurement(what, error, self.tolerance, self.reason)]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A function whose images are recorded under one prefix of array names.

    Attributes:
      function: The function, array -> array.
      dtype: Dtype in which it gets its input.
      tolerance: Largest error that counts as agreement.
      reason: Why that is not `FLOAT64`.
      exact: Prefix of the same images in high precision. With it, errors are distances
        from these, and their unit is the reference's own distance.
      rounding: Relative rounding error of one operation, below which that unit is luck.
    """

    function: Callable[[jax.Array], jax.Array]
    dtype: str
    tolerance: float = FLOAT64
    reason: str = ""
    exact: str | None = None
    rounding: float = 0.0


@dataclasses.dataclass(frozen=True)
class Images:
    """Compares `out_X/name` with a function of `input/name`, for each variant X."""

    variants: Mapping[str, Variant]

    def measure(self, case: reading.Case) -> list[Measurement]:
        """Measures against the largest entry of the image, or see `Variant.exact`."""
        outputs = {
            key.partition("/")[0] for key in case.arrays if not key.startswith("input/")
        }
        if not outputs or not outputs <= set(self.variants):
            raise reading.FaultyCaseError(
                f"{case.name}: has the outputs {sorted(outputs)}; the adapter knows "
                f"{sorted(self.variants)}"
            )
        return [self._measure_one(case, prefix) for prefix in sorted(outputs)]

    def _measure_one(self, case: reading.Case, prefix: str) -> Measurement:
        variant = self.variants[prefix]
        recorded = case.under(prefix)
        inputs = {
            key: jnp.asarray(x, variant.dtype)
            for key, x in case.under("input").items()
            if key in recorded
        }
        images = jax.jit(lambda xs: jax.tree.map(variant.function, xs))(inputs)
        errors = {}
        for key, x in recorded.items():
            exact, unit = x, largest(x)
            if variant.exact:
                exact = case.under(variant.exact)[key]
                unit = max(largest(x - exact), variant.rounding * unit)
            got = np.asarray(images[key])
            errors[f"{prefix}/{key}"] = relative_error(got, exact, unit)
        worst = max(errors, key=lambda key: errors[key])
        return Measurement(worst, errors[worst], variant.tolerance, variant.reason)


def largest(x: np.ndarray) -> float:
    """Returns the largest absolute value, 0 if there is none."""
    return float(np.max(np.abs(x), initial=0.0))


def relative_error(got: np.ndarray, expected: np.ndarray, unit: float) -> float:
    """Returns max |got - expected| / unit; infinite where it is not a number.

    Args:
      got: What optlab computes, any float dtype.
      expected: What was recorded, of the same shape.
      unit: What an error is measured against, at least 0.

    Returns:
      The error; 0 for empty arrays and for exact agreement.

    Raises:
      ValueError: The shapes differ.
    """
    if got.shape != expected.shape:
        raise ValueError(f"optlab gives {got.shape}, the reference {expected.shape}")
    difference = largest(got.astype(np.float64) - expected)
    if not np.isfinite(difference):
        return float("inf")
    return 0.0 if difference == 0 else difference / max(unit, 1e-300)
