"""Gradients of Flax models together with the statistics of their layers.

MKOR and K-FAC ask for `layer_stats`: what each layer has read, and the gradient at what
it wrote. The functions here find both in any model made of dense layers and
convolutions, without a change to it: `nn.Dense`, `nn.DenseGeneral` and `nn.Conv` of
linen, `Linear`, `LinearGeneral` and `Conv` of nnx. Layers inside of lifted
transformations (scan, remat, vmap) are refused.

A sample is what a layer reads to write one output. Each token is one, and a term of the
mean loss. A convolution has one for each position, the patch that the kernel covers
there, flattened as the kernel is, (kh, kw, in); but a term of the loss is an image with
all its T positions. With g the gradient of that term at the output of a position, its
means are those of a and g over positions and images, as MKOR's authors take them, and
its second moments are those of KFC, where derivatives at different positions count as
uncorrelated: the curvature of the sum over T positions is T E[a a^T] x E[g g^T]. KFC
writes T to the first factor; here `output_moment` has it, for the input of a bias is 1,
and K-FAC's damping depends on the product alone.
"""

import contextlib
import dataclasses
import functools
import math
import re
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
    loss: Callable[..., jax.Array], *, leave: str | None = None
) -> Callable[..., tuple[jax.Array, Any, Stats]]:
    """Makes `jax.value_and_grad` of a linen model give `layer_stats` too.

    Args:
      loss: From the parameters, and whatever else it is called with, to the mean loss
        of the batch; it calls `model.apply({"params": params}, ...)`.
      leave: Regular expression, searched in the paths of layers, of those that get no
        statistics.

    Returns:
      Function of the same arguments that returns the loss, the gradient by the
      parameters, and `trees.LayerStats` by the path of each layer. Statistics that
      nobody reads cost nothing under `jax.jit`; those of a convolution hold all its
      patches, kh kw times its input.

    Raises:
      LabError: When called, if a layer is inside a lifted transformation, or a
        convolution has groups of features or a mask.

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
            see = functools.partial(_intercept, recorder, leave)
            with nn.intercept_methods(see):
                return loss(params, *args, **kwargs), None

        value, grads, stats, _ = _differentiated(run, params)
        return value, grads, stats

    return value_and_grad


def nnx_value_and_grad(
    loss: Callable[..., jax.Array],
    wrt: Any = nnx.Param,
    *,
    leave: str | None = None,
) -> Callable[..., tuple[jax.Array, Any, Stats]]:
    """Makes `nnx.value_and_grad` give `layer_stats` too.

    Args:
      loss: From a model, and whatever else it is called with, to the mean loss of the
        batch.
      wrt: Which variables are differentiated.
      leave: Regular expression, searched in the paths of layers, of those that get no
        statistics.

    Returns:
      Function of the same arguments that returns the loss, the gradient as `nnx.State`,
      and `trees.LayerStats` by the path of each layer. As with `nnx.value_and_grad`,
      batch statistics and random streams of the model move on.

    Raises:
      LabError: When called, if a layer is inside a transformation, or a convolution
        has groups of features or a mask.

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
            with _recorded(module, recorder, leave):
                value = loss(module, *args, **kwargs)
            return value, nnx.split(module, wrt, ...)[2]

        value, grads, stats, moved = _differentiated(run, params)
        nnx.update(model, moved)
        return value, grads, stats

    return value_and_grad


@dataclasses.dataclass(frozen=True)
class _Reader:
    """How samples are read from the input and the output of a layer.

    Attributes:
      features: How many trailing axes of input and output are features.
      patches: For a convolution, from its input to what it reads at each position, the
        features flattened to one axis.
      positions: How many axes before the features are positions of one term of the
        loss.
    """

    features: tuple[int, int]
    patches: Callable[[jax.Array], jax.Array] | None = None
    positions: int = 0

    def inputs(self, x: jax.Array) -> jax.Array:
        x = _wide(x)
        x = self.patches(x) if self.patches else x
        return _flat(x, self.features[0])

    def outputs(self, g: jax.Array) -> jax.Array:
        return _flat(_wide(g), self.features[1])

    def terms(self, y: jax.Array) -> int:
        """Counts the terms of the loss that an output stands for."""
        return math.prod(y.shape[: y.ndim - self.features[1] - self.positions])


@dataclasses.dataclass
class _Recorder:
    """Sees each call of a layer; adds a probe, zero, to its output.

    Attributes:
      probes: Zeros by path and number of the call, shaped like the outputs; None while
        these shapes are being found.
      inputs: What was read, by the same keys.
      outputs: What was written.
      readers: How both are read, by path.
    """

    probes: dict[tuple[str, int], jax.Array] | None
    inputs: dict[tuple[str, int], jax.Array] = dataclasses.field(default_factory=dict)
    outputs: dict[tuple[str, int], jax.Array] = dataclasses.field(default_factory=dict)
    readers: dict[str, _Reader] = dataclasses.field(default_factory=dict)

    def see(self, path: str, x: jax.Array, y: jax.Array, reader: _Reader) -> jax.Array:
        key = path, sum(other == path for other, _ in self.inputs)
        self.inputs[key], self.outputs[key], self.readers[path] = x, y, reader
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
        stats = _statistics(inputs, cotangents, finder.readers)
    except jax.errors.UnexpectedTracerError as error:
        raise lab.LabError(
            "capture: a layer runs inside scan, remat, vmap or another"
            " transformation of the model, from where its input cannot be taken out."
            " Unroll the model, or give the optimizer statistics of your own."
        ) from error
    return value, grads, stats, beside


def _statistics(inputs: Any, cotangents: Any, readers: dict[str, _Reader]) -> Stats:
    stats = {}
    for path, reader in readers.items():
        calls = [key for key in inputs if key[0] == path]
        xs = [reader.inputs(inputs[key]) for key in calls]
        gs = [reader.outputs(cotangents[key]) for key in calls]
        count = sum(x.shape[0] for x in xs)
        # The gradient of a mean over N terms already has the 1 / N.
        terms = sum(reader.terms(cotangents[key]) for key in calls)
        stats[path] = trees.LayerStats(
            sum(jnp.sum(x, axis=0) for x in xs) / count,
            sum(jnp.sum(g, axis=0) for g in gs) * (terms / count),
            sum(_squares(x) for x in xs) / count,
            # Each of the positions of a term has the count of them: it is a sum.
            sum(_squares(g) for g in gs) * terms,
        )
    return stats


def _squares(x: jax.Array) -> jax.Array:
    return jnp.matmul(x.T, x, precision="highest")


def _wide(x: jax.Array) -> jax.Array:
    """Returns an array in float32 or wider, whole on each device."""
    sharding = jax.typeof(x).sharding
    if any(sharding.spec):
        x = jax.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _flat(x: jax.Array, features: int) -> jax.Array:
    """Flattens to (samples, features)."""
    return x.reshape(-1, math.prod(x.shape[x.ndim - features :]))


def _patches(x: jax.Array, layer: Any) -> jax.Array:
    """Reads what a convolution of Flax reads at each position, (kh, kw, in) flattened.

    Args:
      x: Its input, shape (..., height, width, in), with one axis for each of the
        kernel's.
      layer: The layer, of linen or nnx.

    Returns:
      Shape (..., height', width', kh kw in).
    """
    kernel = _each(layer.kernel_size, 1)
    rank = len(kernel)
    batch, x = x.shape[: -rank - 1], x.reshape(-1, *x.shape[-rank - 1 :])
    dilation = _each(layer.kernel_dilation, rank)
    x, padding = _padded(x, layer.padding, kernel, dilation)
    axes = "stuvwxyz"[:rank]
    read = jax.lax.conv_general_dilated_patches(
        x,
        kernel,
        _each(layer.strides, rank),
        padding,
        lhs_dilation=_each(layer.input_dilation, rank),
        rhs_dilation=dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        precision=jax.lax.Precision.HIGHEST,
    )
    # Features come out as (in, kh, kw).
    read = read.reshape(*read.shape[:-1], x.shape[-1], *kernel)
    read = jnp.moveaxis(read, -rank - 1, -1)
    return read.reshape(*batch, *read.shape[1 : rank + 1], -1)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """Returns a number for each axis; Flax takes one for all, and None for 1."""
    return (value or 1,) * rank if isinstance(value, int | None) else tuple(value)


def _padded(
    x: jax.Array, padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[jax.Array, Any]:
    """Pads as only Flax can, and returns the padding that is left to JAX."""
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    modes = {"CIRCULAR": "wrap", "REFLECT": "reflect", "CAUSAL": "constant"}
    if isinstance(padding, str) and padding in modes:
        # An even kernel reaches farther to the end.
        sides = [(r // 2, (r + 1) // 2) for r in reach]
        if padding == "CAUSAL":
            sides = [(r, 0) for r in reach]
        x = jnp.pad(x, [(0, 0), *sides, (0, 0)], mode=modes[padding])
        return x, "VALID"
    if isinstance(padding, str):
        return x, padding
    if isinstance(padding, int):
        padding = (padding,) * len(kernel)
    return x, [(p, p) if isinstance(p, int) else tuple(p) for p in padding]


def _reader(layer: Any, path: str, leave: str | None) -> _Reader | None:
    """Finds how a layer is read; None if it shall not be, or is of no known kind."""
    if leave is not None and re.search(leave, path):
        return None
    if isinstance(layer, nn.Dense):
        return _Reader((1, 1))
    if isinstance(layer, nn.DenseGeneral):
        axes = _count(layer.axis), _count(layer.features)
        return None if layer.batch_dims else _Reader(axes)
    if isinstance(layer, nnx.Linear | nnx.LinearGeneral):
        return _Reader((_count(layer.in_features), _count(layer.out_features)))
    if not isinstance(layer, nn.Conv | nnx.Conv):
        return None
    if layer.feature_group_count != 1 or layer.mask is not None:
        what = f"feature_group_count={layer.feature_group_count}"
        what = what if layer.mask is None else "a mask"
        raise lab.LabError(
            f"capture: the convolution {path!r} has {what}, so that its gradient is no"
            " product of patches with gradients of its output. Leave it out,"
            f" leave={path!r}, and keep it from the optimizer,"
            f" views=partial(trees.matrix_views, rules=[({path!r}, None)])."
        )
    patches = functools.partial(_patches, layer=layer)
    return _Reader((1, 1), patches, positions=len(_each(layer.kernel_size, 1)))


def _count(axes: Any) -> int:
    return 1 if isinstance(axes, int) else len(axes)


def _intercept(recorder, leave, next_function, args, kwargs, context):
    """Lets a recorder see the call of a linen layer."""
    y, layer = next_function(*args, **kwargs), context.module
    path = "/".join(layer.path)
    is_call = context.method_name == "__call__"
    reader = _reader(layer, path, leave) if is_call else None
    return y if reader is None else recorder.see(path, args[0], y, reader)


@contextlib.contextmanager
def _recorded(
    model: nnx.Module, recorder: _Recorder, leave: str | None
) -> Iterator[None]:
    """Lets a recorder see the calls of the layers of an nnx model."""
    layers = {}
    for keys, module in nnx.iter_modules(model):
        path = "/".join(map(str, keys))
        reader = _reader(module, path, leave)
        if reader is not None:
            see = functools.partial(recorder.see, path, reader=reader)
            layers[id(module)] = module, type(module), see
    for key, (module, kind, see) in layers.items():
        _SEEN[key] = see
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
            return _SEEN[id(self)](x, y) if id(self) in _SEEN else y

    return Seen
