"""Fits a law to measured curves, in float64 on the host."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from optlab.laws import _annealing_law, _curve, _fitted, _law

# Relative difference at which Huber's function turns from square to straight.
DELTA = 1e-3

# Neighbouring losses err alike: ten of them count as one against a prior.
ALIKE = 10

# The starts from which a fit descends, the best ones.
DESCENTS = 2

# A parameter whose standard deviation is more than this part of its value is not
# identified; one whose prior has hardly been narrowed rests on it.
VAGUE, HELD = 0.5, 0.95


def fit(
    curves: _curve.Curve | Sequence[_curve.Curve],
    law: _law.Law | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
) -> _fitted.Fitted:
    """Fits a law to loss curves of one model, batch and peak rate.

    Minimizes the sum of Huber's function of log loss - log prediction, and the priors
    of the law if it has any, with L-BFGS-B and exact gradients from several starts.
    Losses measured in the warm-up are left out. Two cheap runs are enough, one at a
    constant rate and one that decays.

    Args:
      curves: The curves, with the rate of every update.
      law: The law; `progress_law()` by default.
      facts: What else is the same in these runs, such as {"batch": 32}, for `predict`
        to compare.

    Returns:
      The fitted law, with intervals of its parameters and warnings.

    Raises:
      ValueError: If there is no curve, the peaks differ by more than 1 %, or there are
        fewer losses than parameters.

    Example:
      >>> import numpy as np
      >>> from optlab import laws, schedules
      >>> step = np.arange(10, 401, 10)
      >>> curves = []
      >>> for schedule in (
      ...     schedules.constant(0.1),
      ...     schedules.cosine(0.1, total_steps=400),
      ... ):
      ...     rate = np.asarray(schedule(np.arange(400)))
      ...     curves.append(laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate))
      >>> fitted = laws.fit(curves, laws.power_law())
      >>> print({name: round(value, 3) for name, value in fitted.params.items()})
      {'L0': 2.0, 'A': 1.0, 'alpha': 0.5}

    Source:
      Objective: Tissue et al., 2024, arXiv:2408.11029. Differs from the authors'
      script: exact gradients; the parameters in which the loss is linear are solved for
      at each start; priors.
    """
    curves = (curves,) if isinstance(curves, _curve.Curve) else tuple(curves)
    law = _annealing_law.progress_law() if law is None else law
    _check(curves, law)
    with jax.enable_x64(True):
        problem = _Problem.of(curves, law)
        starts = sorted(problem.starts(), key=lambda z: problem.objective(z)[0])
        ends = map(problem.descend, starts[:DESCENTS])
        best = min(ends, key=lambda found: found.fun)
        return _summary(problem, best.x, facts or {})


class _Data(NamedTuple):
    """Curves side by side, padded to one length: c curves, n losses, T updates."""

    rate: np.ndarray  # (c, T)
    warmup: np.ndarray  # (c,)
    step: np.ndarray  # (c, n)
    loss: np.ndarray  # (c, n)
    known: np.ndarray  # (c, n), False where there is only padding


def _side_by_side(curves: tuple[_curve.Curve, ...]) -> _Data:
    steps = max(int(curve.step[-1]) for curve in curves)
    most = max(curve.step.size for curve in curves)
    data = _Data(
        rate=np.zeros((len(curves), steps)),
        warmup=np.array([curve.warmup_steps for curve in curves]),
        step=np.ones((len(curves), most), np.int64),
        loss=np.ones((len(curves), most)),
        known=np.zeros((len(curves), most), bool),
    )
    for row, curve in enumerate(curves):
        use = _after_warmup(curve)
        size, length = int(use.sum()), min(steps, curve.rate.size)
        data.step[row, :size] = curve.step[use]
        data.loss[row, :size] = curve.loss[use]
        data.known[row, :size] = True
        data.rate[row, :length] = curve.rate[:length]
    return data


def _after_warmup(curve: _curve.Curve) -> np.ndarray:
    """The losses that a law is about: none knows the first fall, in the warm-up."""
    return curve.step > max(curve.warmup_steps, int(np.argmax(curve.rate > 0)))


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What a fit minimizes, over z: each parameter in a unit of its own.

    A parameter in which the loss is linear is counted in `unit`, a number of steps as
    the logarithm of its part of the longest curve, any other as it is.
    """

    law: _law.Law
    data: _Data
    unit: np.ndarray
    peak: float
    steps: int

    @classmethod
    def of(cls, curves: tuple[_curve.Curve, ...], law: _law.Law) -> "_Problem":
        data = _side_by_side(curves)
        peak = max(curve.peak for curve in curves)
        unit = np.ones(len(law.names))
        problem = cls(law, data, unit.copy(), peak, data.rate.shape[1])
        columns = problem.columns(problem.shapes()[0])
        for index, column in columns.items():
            largest = np.abs(column[data.known]).max()
            unit[index] = data.loss[data.known].mean() / largest if largest > 0 else 1.0
        return dataclasses.replace(problem, unit=unit)

    @functools.cached_property
    def functions(self) -> "_Functions":
        counts = tuple(parameter.counts_steps for parameter in self.law.parameters)
        return _compiled(self.law.losses, self.law.names, counts)

    @functools.cached_property
    def arguments(self) -> tuple[Any, ...]:
        priors = np.array([p.prior or (1.0, np.inf) for p in self.law.parameters])
        priors[:, 0] = [
            np.log(mean) if p.counts_steps else mean
            for p, mean in zip(self.law.parameters, priors[:, 0], strict=True)
        ]
        arrays = (self.unit, priors, self.peak, self.steps, self.data)
        return jax.tree.map(jnp.asarray, arrays)

    def shapes(self) -> list[np.ndarray]:
        """Starts of the parameters that are not solved for; the others are 0."""
        grids = [
            np.log(p.starts) if p.counts_steps else p.starts or (0.0,)
            for p in self.law.parameters
        ]
        return [np.array(start, float) for start in itertools.product(*grids)]

    def columns(self, shape: np.ndarray) -> dict[int, np.ndarray]:
        """By index, what a parameter in which the loss is linear multiplies."""
        linear = [i for i, p in enumerate(self.law.parameters) if not p.starts]
        z = shape + np.eye(len(shape))[linear[0]]
        found = self.functions.linearize(z, *self.arguments)
        residual, gradient = map(np.asarray, found[:2])
        loss = self.data.loss * np.exp(residual)
        return {index: gradient[..., index] * loss for index in linear}

    def starts(self) -> list[np.ndarray]:
        """A start for each shape, with the best of the other parameters for it."""
        found = []
        for shape in self.shapes():
            columns = self.columns(shape)
            relative = [(c / self.data.loss)[self.data.known] for c in columns.values()]
            matrix = np.stack(relative, axis=1)
            start = shape.copy()
            start[list(columns)] = optimize.nnls(matrix, np.ones(len(matrix)))[0]
            found.append(start)
        return found

    def objective(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """What is minimized, and its gradient."""
        value, gradient = self.functions.objective(z, *self.arguments)
        return float(value), np.asarray(gradient)

    def descend(self, start: np.ndarray) -> optimize.OptimizeResult:
        """Returns scipy's result of one descent."""
        bounds = [
            tuple(np.log(p.bounds) if p.counts_steps else np.divide(p.bounds, unit))
            for p, unit in zip(self.law.parameters, self.unit, strict=True)
        ]
        return optimize.minimize(
            self.objective,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 1000, "maxfun": 3000, "ftol": 1e-11, "gtol": 1e-7},
        )


class _Functions(NamedTuple):
    objective: Any
    linearize: Any


@functools.lru_cache(maxsize=16)
def _compiled(
    losses: _law.Losses, names: tuple[str, ...], counts_steps: tuple[bool, ...]
) -> _Functions:
    """The functions of z that a fit calls, compiled once for each law and shape."""

    def predict(z, unit, priors, peak, steps, data):
        del priors
        values = jnp.where(jnp.array(counts_steps), steps * jnp.exp(z), z * unit)
        params = dict(zip(names, values, strict=True), peak=peak)
        run = functools.partial(losses, params)
        return jax.vmap(run)(data.rate, data.warmup, data.step)

    def residual(z, *arguments):
        data = arguments[-1]
        # A line search may try what makes a loss negative; the logarithm goes on as a
        # steep line there.
        found = predict(z, *arguments) / data.loss
        log = jnp.log(jnp.maximum(found, DELTA)) + jnp.minimum(found - DELTA, 0) / DELTA
        return jnp.where(data.known, log, 0.0)

    def huber(z, *arguments):
        size = jnp.abs(residual(z, *arguments))
        return jnp.sum(jnp.where(size < DELTA, size**2 / 2, DELTA * (size - DELTA / 2)))

    def objective(z, unit, priors, *rest):
        away = (z - priors[:, 0]) / priors[:, 1]
        data = huber(z, unit, priors, *rest) / (DELTA**2 * ALIKE)
        return data + jnp.sum(away**2) / 2

    def linearize(z, *arguments):
        gradient = jax.jacfwd(residual)(z, *arguments)
        return residual(z, *arguments), gradient, huber(z, *arguments)

    return _Functions(jax.jit(jax.value_and_grad(objective)), jax.jit(linearize))


def _summary(
    problem: _Problem, z: np.ndarray, facts: Mapping[str, Any]
) -> _fitted.Fitted:
    law, known = problem.law, problem.data.known
    found = problem.functions.linearize(z, *problem.arguments)
    residual, gradient, huber = map(np.asarray, found)
    scatter = np.sqrt(np.mean(residual[known] ** 2))
    jacobian = gradient[known]
    weight = 1 / (max(scatter, 1e-9) ** 2 * _alike(residual, known))
    information = weight * jacobian.T @ jacobian
    prior = np.array([p.prior[1] if p.prior else np.inf for p in law.parameters])
    # Nothing is known of a parameter by more than a hundred times its unit.
    wide = np.where(np.isfinite(prior), prior, 100.0)
    covariance = np.linalg.inv(information + np.diag(wide**-2.0))
    steps_of = np.array([p.counts_steps for p in law.parameters])
    values = np.where(steps_of, problem.steps * np.exp(z), z * problem.unit)
    slope = np.where(steps_of, values, problem.unit)
    deviation = np.sqrt(np.diag(covariance))
    side = _fitted.SIDE * deviation
    low = np.where(steps_of, values * np.exp(-side), values - side * slope)
    high = np.where(steps_of, values * np.exp(side), values + side * slope)
    least = np.array([0.0 if p.counts_steps else p.bounds[0] for p in law.parameters])
    return _fitted.Fitted(
        law=law,
        params=dict(zip(law.names, values.tolist(), strict=True)),
        intervals={
            name: (float(max(a, b)), float(c))
            for name, a, b, c in zip(law.names, low, least, high, strict=True)
        },
        warnings=_warnings(law, z, deviation, prior),
        peak=problem.peak,
        steps=problem.steps,
        scatter=float(scatter),
        covariance=covariance * np.outer(slope, slope),
        objective=float(huber),
        facts=dict(facts),
    )


def _alike(residual: np.ndarray, known: np.ndarray) -> float:
    """How many neighbouring losses tell as much as one, from their correlation."""
    pairs = known[:, 1:] & known[:, :-1]
    both = np.mean((residual[:, 1:] * residual[:, :-1])[pairs])
    alone = max(np.mean(residual[known] ** 2), 1e-300)
    correlation = np.clip(both / alone, 0.0, 0.95)
    return float((1 + correlation) / (1 - correlation))


def _warnings(
    law: _law.Law, z: np.ndarray, deviation: np.ndarray, prior: np.ndarray
) -> tuple[str, ...]:
    found = []
    for name, value, spread, known in zip(law.names, z, deviation, prior, strict=True):
        if np.isfinite(known) and spread > HELD * known:
            found.append(
                f"{name} rests on its prior: these curves hardly tell it; add a curve"
                " with another decay, best one that steps down and holds"
            )
        elif not np.isfinite(known) and spread > VAGUE * abs(value):
            found.append(
                f"{name} is not identified by these curves; add one with another"
                " schedule: a decaying one if all are constant, or a longer one"
            )
    return tuple(found)


def _check(curves: tuple[_curve.Curve, ...], law: _law.Law) -> None:
    if not curves:
        raise ValueError("laws.fit: no curve; give one or more laws.Curve")
    for curve in curves:
        if not isinstance(curve, _curve.Curve):
            raise TypeError(f"laws.fit: a curve is a laws.Curve, got {type(curve)}")
    low, high = (f(curves, key=lambda curve: curve.peak) for f in (min, max))
    if high.peak > 1.01 * low.peak:
        raise ValueError(
            f"laws.fit: '{low.name}' has peak {low.peak:g} and '{high.name}'"
            f" {high.peak:g}; a law holds for one peak: fit them apart"
        )
    losses = sum(int(_after_warmup(curve).sum()) for curve in curves)
    if losses < len(law.names):
        raise ValueError(
            f"laws.fit: {losses} losses after the warm-up for the {len(law.names)}"
            f" parameters of the {law.name} law; give more losses or another law"
        )
