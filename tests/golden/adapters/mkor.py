"""MKOR on the recorded inputs and output gradients of each layer."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from optlab import links, optimizers
from tests.golden.comparing import FLOAT64, Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings

# The factors and the directions of float32 runs are rounded at other places; over a
# few steps that is some ten units in the last place.
FLOAT32 = 1e-5


def _layers(flat: Any) -> dict[str, dict[str, Any]]:
    """Turns {'layers.0.weight': (out, in)} into {'layers.0': {'kernel': (in, out)}}."""
    tree: dict[str, dict[str, Any]] = {}
    for path, x in flat.items():
        layer, _, name = path.rpartition(".")
        matrix = name == "weight"
        tree.setdefault(layer, {})["kernel" if matrix else name] = x.T if matrix else x
    return tree


def _flat(tree: Any, like: Any) -> dict[str, Any]:
    out = {}
    for path in like:
        layer, _, name = path.rpartition(".")
        out[path] = tree[layer]["kernel"].T if name == "weight" else tree[layer][name]
    return out


def _fed(tx: optax.GradientTransformationExtraArgs, stats: Any):
    """Reads parameters as layers, and gives each step its recorded statistics."""

    def init(params):
        return jnp.zeros((), jnp.int32), tx.init(_layers(params))

    def update(updates, state, params=None):
        count, inner = state
        now = {path: (a[count], g[count]) for path, (a, g) in stats.items()}
        new, inner = tx.update(
            _layers(updates), inner, _layers(params), layer_stats=now
        )
        return _flat(new, updates), (count + 1, inner)

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class _Fed:
    """A trajectory whose layer statistics are computed from the case."""

    tx: optax.GradientTransformationExtraArgs
    clip: float

    def measure(self, case: Case):
        inputs = case.under("extra/layer_input")
        outputs = case.under("extra/grad_output")
        layers = sorted({path.rpartition(".")[0] for path in case.init})
        stats = {}
        for layer in layers:
            a, g = (x[layer.rpartition(".")[2]] for x in (inputs, outputs))
            # The samples are clamped before their mean is taken.
            vectors = (np.clip(x, -self.clip, self.clip) for x in (a, len(g[0]) * g))
            stats[layer] = tuple(jnp.asarray(x.mean(axis=1)) for x in vectors)
        single = case.meta.get("dtype") == "float32"
        reason = "float32 as published" if single else ""
        tolerance = FLOAT32 if single else FLOAT64
        return Trajectory(_fed(self.tx, stats), tolerance, reason).measure(case)


def mkor(values: Settings, case: Case) -> _Fed:
    for name in ("stat_decay", "stabilization_factor"):
        values.idle(name, because="the code stores it and never reads it")
    for name in ("grad_accum_steps", "grad_scale"):
        values.take(name, 1, among=(1,))
    values.take("half_precision", False, among=(False,))
    clip, rate = values.take("clipping_value", 100.0), values.take("lr")
    core = optimizers.scale_by_mkor(
        every=values.take("inv_freq", 10),
        warmup_steps=values.take("warmup_steps", 0),
        clip=clip,
    )
    inner = values.take("optimizer", "sgd", among=("sgd", "adam"))
    decay = optax.add_decayed_weights(values.take("weight_decay", 0))
    if inner == "adam":
        b1, b2 = values.take("betas", (0.9, 0.999))
        rest = optax.scale_by_adam(b1, b2, values.take("eps", 1e-8))
    else:
        rest = optax.trace(values.take("momentum", 0), values.take("nesterov", False))
        values.take("dampening", 0, among=(0,))
    tx = optax.chain(core, decay, rest, links.scale_by_learning_rate(rate))
    return _Fed(tx, clip)


ADAPTERS = {"MKOR": mkor}
