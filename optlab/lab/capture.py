"""Gradients of Flax models together with the statistics of their layers.

MKOR and K-FAC ask for `layer_stats`: what each layer has read, and the gradient at what
it wrote. The functions here find both in any model made of dense layers, without a
change to it: `nn.Dense` and `nn.DenseGeneral` of linen, `Linear` and `LinearGeneral` of
nnx. Layers inside of lifted transformations (scan, remat, vmap) are refused.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from optlab import lab, trees

Stats = dict[str, trees.LayerStats]


def linen_value_and_grad(
    loss: Callable[..., jax.Array],
) -> Callable[..., tuple[jax.Array, Any, Stats]]:
    """Makes `jax.value_and_grad` of a linen model give `layer_stats` too.

    Args:
      loss: From the parameters, and whatever else it is called with, to the mean loss
        of the batch; it calls `model.apply({"params": params}, ...)`.

    Returns:
      Function of the same arguments that returns the loss, the gradient by the
      parameters, and `trees.LayerStats` by the path of each dense layer. Statistics
      that nobody reads cost nothing under `jax.jit`.

    Raises:
      LabError: When called, if a layer is inside a lifted transformation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from optlab.lab import capture
      >>> model, x = nn.Dense(1), jnp.array([[1.0, 3.0], [3.0, 5.0]])
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> loss = lambda params: jnp.mean(model.apply({"params": params}, x))
      >>> _, _, stats = capture.linen_value_and_grad(loss)(params)
      >>> print(stats[""].inputs, stats[""].outputs)
      [2. 4.] [1.]
    """

    def value_and_grad(params: Any, *args: Any, **kwargs: Any) -> Any:
        def run(params: Any, recorder: _Recorder) -> tuple[jax.Array, None]:
            with nn.intercept_methods(functools.partial(_intercept, recorder)):
                return loss(params, *args, **kwargs), None

        value, grads, stats, _ = _differentiated(run, params)
        return value, grads, stats

    return value_and_grad


def nnx_value_and_grad(
    loss: Callable[..., jax.Array], wrt: Any = nnx.Param
) -> Callable[..., tuple[jax.Array, Any, Stats]]:
    """Makes `nnx.value_and_grad` give `layer_stats` too.

    Args:
      loss: From a model, and whatever else it is called with, to the mean loss of the
        batch.
      wrt: Which variables are differentiated.

    Returns:
      Function of the same arguments that returns the loss, the gradient as `nnx.State`,
      and `trees.LayerStats` by the path of each dense layer. As with
      `nnx.value_and_grad`, batch statistics and random streams of the model move on.

    Raises:
      LabError: When called, if a layer is inside a transformation.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from optlab.lab import capture
      >>> model, x = nnx.Linear(2, 1, rngs=nnx.Rngs(0)), jnp.array([[1.0, 3.0]])
      >>> loss = lambda model, x: jnp.mean(model(x) * 2)
      >>> _, _, stats = capture.nnx_value_and_grad(loss)(model, x)
      >>> print(stats[""].inputs, stats[""].outputs)
      [1. 3.] [2.]
    """

    def value_and_grad(model: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        graphdef, params, rest = nnx.split(model, wrt, ...)

        def run(params: Any, recorder: _Recorder) -> tuple[jax.Array, Any]:
            module = nnx.merge(graphdef, params, rest, copy=True)
            with _recorded(module, recorder):
                value = loss(module, *args, **kwargs)
            return value, nnx.split(module, wrt, ...)[2]

        value, grads, stats, moved = _differentiated(run, params)
        nnx.update(model, moved)
        return value, grads, stats

    return value_and_grad


@dataclasses.dataclass
class _Recorder:
    """Sees each call of a layer; adds a probe, zero, to its output.

    Attributes:
      probes: Zeros by path and number of the call, shaped like the outputs; None while
        these shapes are being found.
      inputs: What was read, by the same keys.
      outputs: What was written.
      axes: How many trailing axes of input and output are features.
    """

    probes: dict[tuple[str, int], jax.Array] | None
    inputs: dict[tuple[str, int], jax.Array] = dataclasses.field(default_factory=dict)
    outputs: dict[tuple[str, int], jax.Array] = dataclasses.field(default_factory=dict)
    axes: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def see(
        self, path: str, x: jax.Array, y: jax.Array, axes: tuple[int, int]
    ) -> jax.Array:
        key = path, sum(other == path for other, _ in self.inputs)
        self.inputs[key], self.outputs[key], self.axes[path] = x, y, axes
        return y if self.probes is None else y + self.probes[key]


def _differentiated(run: Callable[..., Any], params: Any) -> Any:
    """Returns loss, gradient, statistics and what `run` returns beside the loss."""
    finder = _Recorder(None)

    def shapes(params: Any) -> Any:
        run(params, finder)
        return finder.outputs

    def recorded(params: Any, probes: Any) -> Any:
        recorder = _Recorder(probes)
        value, beside = run(params, recorder)
        return value, (recorder.inputs, beside)

    try:
        outputs = jax.eval_shape(shapes, params)
        probes = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), outputs)
        gradient = jax.value_and_grad(recorded, argnums=(0, 1), has_aux=True)
        (value, (inputs, beside)), (grads, cotangents) = gradient(params, probes)
        stats = _statistics(inputs, cotangents, finder.axes)
    except jax.errors.UnexpectedTracerError as error:
        raise lab.LabError(
            "capture: a dense layer runs inside scan, remat, vmap or another"
            " transformation of the model, from where its input cannot be taken out."
            " Unroll the model, or give the optimizer statistics of your own."
        ) from error
    return value, grads, stats, beside


def _statistics(
    inputs: Any, cotangents: Any, axes: dict[str, tuple[int, int]]
) -> Stats:
    stats = {}
    for path, (features_in, features_out) in axes.items():
        calls = [key for key in inputs if key[0] == path]
        xs = [_samples(inputs[key], features_in) for key in calls]
        gs = [_samples(cotangents[key], features_out) for key in calls]
        count = sum(x.shape[0] for x in xs)
        stats[path] = trees.LayerStats(
            sum(jnp.sum(x, axis=0) for x in xs) / count,
            # The gradient of a mean over N samples already has the 1 / N.
            sum(jnp.sum(g, axis=0) for g in gs),
            sum(x.T @ x for x in xs) / count,
            sum(g.T @ g for g in gs) * count,
        )
    return stats


def _samples(x: jax.Array, features: int) -> jax.Array:
    """Flattens to (samples, features), in float32 or wider, whole on each device."""
    sharding = jax.typeof(x).sharding
    if any(sharding.spec):
        x = jax.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x.reshape(-1, math.prod(x.shape[x.ndim - features :]))


def _intercept(recorder, next_function, args, kwargs, context):
    """Lets a recorder see the call of a linen layer."""
    y, layer = next_function(*args, **kwargs), context.module
    if context.method_name != "__call__":
        return y
    if isinstance(layer, nn.Dense):
        axes = 1, 1
    elif isinstance(layer, nn.DenseGeneral) and not layer.batch_dims:
        axes = _count(layer.axis), _count(layer.features)
    else:
        return y
    return recorder.see("/".join(layer.path), args[0], y, axes)


def _count(axes: Any) -> int:
    return 1 if isinstance(axes, int) else len(axes)


@contextlib.contextmanager
def _recorded(model: nnx.Module, recorder: _Recorder) -> Iterator[None]:
    """Lets a recorder see the calls of the dense layers of an nnx model."""
    layers = {
        id(module): (module, type(module), "/".join(map(str, path)))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear | nnx.LinearGeneral)
    }
    for key, (module, kind, path) in layers.items():
        _SEEN[key] = functools.partial(_see, recorder, path)
        object.__setattr__(module, "__class__", _seen_kind(kind))
    try:
        yield
    finally:
        for key, (module, kind, _) in layers.items():
            object.__setattr__(module, "__class__", kind)
            del _SEEN[key]


# Who wants to see the calls of which module: calls are looked up on the class.
_SEEN: dict[int, Callable[..., jax.Array]] = {}


@functools.cache
def _seen_kind(kind: type) -> type:
    """A subclass whose instances tell of their calls."""

    class Seen(kind):
        def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            y = super().__call__(x, *args, **kwargs)
            return _SEEN[id(self)](self, x, y) if id(self) in _SEEN else y

    return Seen


def _see(recorder: _Recorder, path: str, layer: Any, x: Any, y: Any) -> jax.Array:
    axes = _count(layer.in_features), _count(layer.out_features)
    return recorder.see(path, x, y, axes)
