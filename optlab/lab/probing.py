"""Probes at the checkpoints of a run: what `optlab probe` measures."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optlab import estimators, lab, links, probes
from optlab.lab import saved

# Each batch of a run is cut into so many parts, to measure the noise of gradients.
PARTS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
      batches: Training batches that stand for the data.
      steps: Lanczos steps.
      draws: Random vectors for the density; the trace takes four times as many.
      top: Eigenvalues to name.
      seed: Seed of the random vectors.
    """

    batches: int = 8
    steps: int = 32
    draws: int = 4
    top: int = 5
    seed: int = 0

    def key(self) -> jax.Array:
        """Returns the key of the random vectors."""
        return jax.random.key(self.seed)


class Spectrum(NamedTuple):
    """The spectrum of the Hessian at a checkpoint, on the host.

    Attributes:
      step: Updates done.
      values: The largest eigenvalues, the largest first, shape (k,).
      residuals: How far each may be off, shape (k,).
      trace: Sum of all eigenvalues, and its standard error.
      nodes: As in `probes.SpectralDensity`, as are the next three.
      weights: See there.
      grid: See there.
      density: See there.
    """

    step: int
    values: np.ndarray
    residuals: np.ndarray
    trace: tuple[float, float]
    nodes: np.ndarray
    weights: np.ndarray
    grid: np.ndarray
    density: np.ndarray


class Sharpness(NamedTuple):
    """The sharpness at a checkpoint beside the learning rate.

    Attributes:
      step: Updates done.
      sharpness: Largest eigenvalue of the Hessian.
      residual: How far it may be off.
      along_gradient: Curvature along the gradient.
      trace: Sum of all eigenvalues, and its standard error.
      rate: Rate of the latest update; NaN if the log does not say it.
      edge: 2 / rate.
    """

    step: int
    sharpness: float
    residual: float
    along_gradient: float
    trace: tuple[float, float]
    rate: float
    edge: float


class Noise(NamedTuple):
    """Gradients of different batch sizes at a checkpoint.

    Attributes:
      step: Updates done.
      batch: Examples in a batch of the run.
      sizes: Numbers of examples, each twice the one before.
      sq_norms: Mean squared norm of gradients of so many examples.
      gradient_sq: Estimate of the squared norm of the true gradient.
      noise: Estimate of the variance of one example's gradient.
      noise_scale: Their quotient, in examples; may be infinite.
    """

    step: int
    batch: int
    sizes: list[int]
    sq_norms: list[float]
    gradient_sq: float
    noise: float
    noise_scale: float


class Examples(NamedTuple):
    """Losses of examples at the two newest checkpoints.

    Attributes:
      steps: Updates done at both.
      before: Loss of each example at the first, shape (n,).
      after: Loss at the second, shape (n,).
      risen: Places of the largest rises.
      fallen: Places of the largest falls.
    """

    steps: tuple[int, int]
    before: np.ndarray
    after: np.ndarray
    risen: np.ndarray
    fallen: np.ndarray


class Prober:
    """Measures one run; what is compiled and drawn is shared between measurements.

    Losses are those of the model in evaluation mode, so that dropout does not change
    the function between two products.

    Args:
      run: The run.
      settings: How much to measure.
    """

    def __init__(self, run: saved.SavedRun, settings: Settings):
        self.run = run
        self.settings = settings
        self._batches = [
            run.workload.batch(run.seed, index) for index in range(settings.batches)
        ]

    def spectrum(self) -> Spectrum:
        """Measures the spectrum of the Hessian at the newest checkpoint."""
        asked, step = self.settings, self.run.steps[-1]
        loss, params = self._loss_at(step)
        hessian = self._hessian(loss, params)
        one, two, three = jax.random.split(asked.key(), 3)
        size = sum(x.size for x in jax.tree.leaves(params))
        most = min(asked.steps, size)
        k = min(asked.top, most)
        found = (
            probes.top_eigenpairs(hessian, params, one, k, steps=most),
            probes.spectral_density(
                hessian, params, two, draws=asked.draws, steps=most
            ),
            probes.trace(hessian, params, three, draws=4 * asked.draws),
        )
        top, density, total = jax.device_get(found)
        trace = (float(total.value), float(total.standard_error))
        return Spectrum(step, top.values, top.residuals, trace, *density)

    def sharpness(self) -> list[Sharpness]:
        """Measures the sharpness at every checkpoint that is kept."""
        rates = self.run.rates()
        # One function for all, so that it is compiled once.
        loss, _ = self._loss_at(self.run.steps[-1])
        gradient = jax.jit(functools.partial(probes.microbatch_gradient, loss))
        return [
            self._sharpness_at(step, loss, gradient, rates) for step in self.run.steps
        ]

    def _sharpness_at(
        self,
        step: int,
        loss: Callable[[Any, Any], jax.Array],
        gradient: Callable[[Any, Any], Any],
        rates: dict[int, float],
    ) -> Sharpness:
        asked = self.settings
        _, params = self._loss_at(step)
        hessian = self._hessian(loss, params)
        one, two = jax.random.split(asked.key())
        found = (
            probes.top_eigenpairs(hessian, params, one, steps=asked.steps)[::2],
            probes.directional_sharpness(
                hessian, gradient(params, self._stacked()).grads
            ),
            probes.trace(hessian, params, two, draws=4 * asked.draws),
        )
        (value, residual), along, total = jax.device_get(found)
        rate = rates.get(step - 1, math.nan)
        return Sharpness(
            step,
            float(value[0]),
            float(residual[0]),
            float(along),
            (float(total.value), float(total.standard_error)),
            rate,
            2 / rate if rate > 0 else math.nan,
        )

    def noise(self) -> Noise:
        """Measures gradients of ever larger batches at the newest checkpoint."""
        step = self.run.steps[-1]
        loss, params = self._loss_at(step)
        batch = len(next(iter(self._batches[0].values())))
        part = max(1, batch // PARTS)
        parts = [
            {name: array[i : i + part] for name, array in each.items()}
            for each in self._batches
            for i in range(0, batch - part + 1, part)
        ]
        count = 2 ** int(math.log2(len(parts)))
        if count < 2:
            raise lab.LabError(
                f"{self.run.folder}: the noise is measured between parts of the data,"
                " and there is but one example; take more --batches"
            )
        gradient = jax.jit(jax.grad(loss))
        squares: dict[int, list[float]] = {}

        def mean(first: int, length: int) -> Any:
            """Returns the mean gradient of some parts; notes its squared norm."""
            if length == 1:
                found = links.widen(gradient(params, parts[first]))
            else:
                half = length // 2
                found = _half_way(mean(first, half), mean(first + half, half))
            squares.setdefault(part * length, []).append(float(_square(found)))
            return found

        mean(0, count)
        sizes = sorted(squares)
        sq_norms = [float(np.mean(squares[size])) for size in sizes]
        found = probes.gradient_noise_scale(
            sq_norms[0], sq_norms[-1], small_batch=sizes[0], big_batch=sizes[-1]
        )
        return Noise(step, batch, sizes, sq_norms, *map(float, found))

    def examples(self) -> Examples:
        """Compares the losses of examples at the two newest checkpoints."""
        steps = list(self.run.steps)
        if len(steps) < 2:
            raise lab.LabError(
                f"{self.run.folder}: examples are compared between two checkpoints, and"
                f" there is one, of step {steps[0]}"
            )
        first, last = steps[-2:]
        loss, before = self._loss_at(first)
        _, after = self._loss_at(last)
        rows = {
            name: np.concatenate([batch[name] for batch in self._batches])
            for name in self._batches[0]
        }
        batch = len(next(iter(self._batches[0].values())))

        def one(params: Any, example: Any) -> jax.Array:
            return loss(params, jax.tree.map(lambda x: x[None], example))

        k = min(self.settings.top, batch * len(self._batches))
        measure = functools.partial(
            probes.example_changes, one, k=k, microbatch_size=batch
        )
        found = jax.device_get(jax.jit(measure)(before, after, rows))
        return Examples((first, last), *found)

    def _hessian(
        self, loss: Callable[[Any, Any], jax.Array], params: Any
    ) -> estimators.Product:
        # Batches from the host, though they would fit: XLA runs convolutions inside
        # of loops ten times slower on a CPU.
        return estimators.hessian_product(
            loss, params, batches=lambda: iter(self._batches)
        )

    def _stacked(self) -> Any:
        """The batches in device memory, (k, b, ...)."""
        return {
            name: jnp.stack([batch[name] for batch in self._batches])
            for name in self._batches[0]
        }

    def _loss_at(self, step: int) -> tuple[Callable[[Any, Any], jax.Array], Any]:
        """Returns the loss from parameters and a batch, and a checkpoint's."""
        model = self.run.model(step)
        model.eval()
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params: Any, batch: Any) -> jax.Array:
            module = nnx.merge(graphdef, params, rest, copy=True)
            return self.run.workload.loss(module, batch)[0]

        return loss, params


@jax.jit
def _half_way(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: (x + y) / 2, a, b)


@jax.jit
def _square(tree: Any) -> jax.Array:
    return links.inner_product(tree, tree)
