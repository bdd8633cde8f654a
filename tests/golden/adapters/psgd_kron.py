"""PSGD-Kron of timm and of its inventor, with the recorded draws in place of ours."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import optimizers
from tests.golden.comparing import FLOAT64, Trajectory
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings

DIAGONALS = {
    None: "long",
    "one_diag": "longest",
    "smart_one_diag": "longer",
    "all_diag": "all",
}
# A momentum that is rounded twice a step there and once here.
ROUNDED = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}

Shape = tuple[int, ...]
Draws = Callable[[str, int], list[np.ndarray]]  # of a parameter, at a step, in order


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A trajectory whose transformation is built anew at each step, with its draws."""

    build: Callable[..., optax.GradientTransformation]
    draws: Draws
    shape: Callable[[Shape], Shape]
    tolerance: float = FLOAT64
    reason: str = ""

    def measure(self, case: Case) -> Any:
        kept = {name: self.shape(x.shape) for name, x in case.init.items()}
        # All draws of a parameter, in the order in which they are made: (steps, ...).
        found = {
            name: [
                jnp.asarray(np.stack(same))
                for same in zip(
                    *(self.draws(name, t) for t in range(case.steps)), strict=True
                )
            ]
            for name in kept
        }

        def reshaped(tree: Any) -> Any:
            return {name: tree[name].reshape(kept[name]) for name in kept}

        def init(params: Any) -> Any:
            return jnp.zeros((), jnp.int32), self.build().init(reshaped(params))

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            count, inner = state
            tx = self.build(normal=_Now(found, kept, count))
            out: Any
            out, inner = tx.update(reshaped(updates), inner, reshaped(params))
            out = {name: out[name].reshape(x.shape) for name, x in updates.items()}
            return out, (count + 1, inner)

        tx = optax.GradientTransformation(init, update)
        return Trajectory(tx, self.tolerance, self.reason).measure(case)


class _Now:
    """Hands out the draws of one step, stack by stack, in the order of the calls."""

    def __init__(self, found: Any, kept: dict[str, Shape], count: jax.Array):
        self.found, self.kept, self.count = found, kept, count
        self.names: list[str] = []
        self.call = 0

    def __call__(self, key: jax.Array, shape: Shape, dtype: Any) -> jax.Array:
        # The noise of a stack comes first and has the shape of its matrices.
        names = [n for n in sorted(self.kept) if (self.kept[n] or (1,)) == shape[1:]]
        if names:
            self.names, self.call = names, 0
        drawn = [self.found[name][self.call][self.count] for name in self.names]
        self.call += 1
        return jnp.stack(drawn).reshape(len(drawn), *shape[1:]).astype(dtype)


def timm(values: Settings, case: Case) -> _Drawn:
    values.idle("deterministic", because="it says where the recorded draws came from")
    if values.take("stochastic_weight_decay", False):
        raise NotInOptlabError("decay by a random factor")
    if values.take("precond_dtype", None) is not None:
        raise NotInOptlabError("factors of another precision than float32 or wider")
    for name in ("decoupled_decay", "corrected_weight_decay"):
        values.idle(name, because="all decays are one here: the rate never changes")
    flatten = values.take("flatten", False)
    start, end = values.take("flatten_start_dim", 2), values.take("flatten_end_dim", -1)
    precision = values.take("mu_dtype", None)
    precision = str(precision).removeprefix("torch.") if precision else None
    chance = values.take("preconditioner_update_probability", None)
    into = values.take("momentum_into_precond_update", True)
    rate = values.take("lr", 1e-3)
    settings = {
        "b1": values.take("momentum", 0.9),
        "weight_decay": values.take("weight_decay", 0.0),
        "probability": chance or optimizers.annealed_probability,
        "whiten": "momentum" if into else "gradient",
        "size": values.take("precond_lr", 0.1),
        "init_scale": values.take("precond_init_scale", 1.0),
        "max_size": values.take("max_size_triangular", 2048),
        "min_order": values.take("min_ndim_triangular", 2),
        "diagonal": DIAGONALS[values.take("memory_save_mode", None, among=DIAGONALS)],
        "accumulator_dtype": precision,
        "damping": 0.0,
        "relative_damping": 0.0,
        "views": "axes",
    }

    def build(**more: Any) -> optax.GradientTransformation:
        return optimizers.psgd_kron(rate, **settings, **more)

    def draws(name: str, t: int) -> list[np.ndarray]:
        return [case.under("extra/V")[name][t]]

    def shape(old: Shape) -> Shape:
        stop = min(end if end >= 0 else len(old) + end, len(old) - 1)
        if not flatten or len(old) <= start or start > stop:
            return old
        return (*old[:start], math.prod(old[start : stop + 1]), *old[stop + 1 :])

    if precision not in (None, "float64"):
        return _Drawn(build, draws, shape, ROUNDED[precision], "momentum rounded once")
    return _Drawn(build, draws, shape)


def author(values: Settings, case: Case) -> _Drawn:
    geometry = values.take("dQ", "Q0.5EQ1.5").replace("Q0p5EQ1p5", "Q0.5EQ1.5")
    if geometry in ("QUAD4P", "PRO4P", "P0.5EP"):
        raise NotInOptlabError(f"factors of P itself, {geometry}")
    rms, entries = values.take("grad_clip_max_amps", (2.0, 10.0))
    b1 = values.take("momentum", 0.0)
    damping = values.take("damping", 1e-9)
    scale = values.take("preconditioner_init_scale", None)
    recorded = [_of_step(case, t) for t in range(case.steps)]
    chance = values.take("preconditioner_update_probability", 1.0)
    gates = jnp.asarray([float(gate < chance) for gate, _ in recorded])
    largest = float(values.take("preconditioner_max_size", math.inf))
    rate = values.take("lr_params", 1e-3)
    settings = {
        "b1": b1 if 0 < b1 < 1 else 0.0,
        "running_mean": True,
        "whiten": "gradient" if values.take("whiten_grad", True) else "momentum",
        # Recorded refreshes: with certainty, or in no time.
        "probability": lambda count: gates[count],
        "refresh_first": values.take("update_preconditioner_first", True),
        "geometry": geometry,
        "size": values.take("lr_preconditioner", 0.1),
        "norm_decay": values.take("betaL", 0.9),
        "probes": 32,
        "damping": damping,
        "relative_damping": 0.0,
        "init_scale": _scale(case, damping) if scale is None else scale,
        "max_size": 2**31 if largest == math.inf else int(largest),
        "max_skew": float(values.take("preconditioner_max_skew", 1.0)),
        "min_order": 1,
        "clip_rms": None if float(rms) == math.inf else float(rms),
        "clip_entries": None if float(entries) == math.inf else float(entries),
        "eps": 0.0,
        "views": "axes",
    }

    def build(**more: Any) -> optax.GradientTransformation:
        return optimizers.psgd_kron(rate, **settings, **more)

    order = case.meta.get("parameter_order", list(case.init))
    drawn = [_by_parameter(case, order, draws) for _, draws in recorded]
    full = next((found for found in drawn if found), {})

    def draws(name: str, t: int) -> list[np.ndarray]:
        # Nothing is drawn without a refresh, and nothing read.
        return drawn[t][name] if drawn[t] else full[name]

    def squeezed(old: Shape) -> Shape:
        return tuple(size for size in old if size != 1)

    return _Drawn(build, draws, squeezed)


def _of_step(case: Case, t: int) -> tuple[float, list[tuple[str, np.ndarray]]]:
    """Returns the gate of a step, and its other draws with the functions' names."""
    found = sorted(case.under(f"extra/draws/{t:02d}").items())
    (_, gate), *rest = found
    return float(gate), [(key.partition("_")[2], value) for key, value in rest]


def _by_parameter(case: Case, order: list[str], draws: Any) -> dict[str, list]:
    """Cuts the draws at each noise, of which there is one for each parameter."""
    runs: list[list[np.ndarray]] = []
    for function, value in draws:
        if function == "randn_like":
            runs.append([])
        if function != "rand":  # balancing: without effect but for rounding
            runs[-1].append(value)
    return dict(zip(order, runs, strict=True)) if runs else {}


def _scale(case: Case, damping: float) -> float:
    """The start that the first gradients give, where none is set."""
    fourth = max(float(np.mean(np.abs(g[0]) ** 4)) for g in case.grads.values())
    return (fourth + damping**4) ** (-1 / 8)


ADAPTERS = {"timm.optim.kron.Kron": timm, "KronWhiten": author}
