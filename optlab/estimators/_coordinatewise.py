"""Finite differences along coordinates: a gradient from values of a loss alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from optlab import links, trees

ORDERS = ("forward", "central")


class CoordinatewiseEstimate(NamedTuple):
    """What the coordinate-wise estimators give.

    Attributes:
      value: The loss at the parameters, shape ().
      grads: Estimate of its gradient, shaped like the parameters; zero where the mask
        is false.
    """

    value: jax.Array
    grads: Any


def coordinatewise_value_and_grad(
    loss: Callable[[Any], jax.Array],
    params: Any,
    *,
    mu: float | jax.Array = 5e-3,
    mask: Any = None,
    chunk: int = 1,
    order: str = "forward",
) -> CoordinatewiseEstimate:
    """Estimates a gradient entry by entry, from values of the loss alone.

    For each entry i of a mask S, and zero elsewhere, with e_i along that entry,

        forward   g_i = (L(w + mu e_i) - L(w)) / mu              error of order mu
        central   g_i = (L(w + mu e_i) - L(w - mu e_i)) / 2 mu   of order mu^2

    No derivative is taken, so the loss may be quantised, or a program of another kind
    behind `jax.pure_callback`. Unlike estimates along random directions this one has no
    variance; its price is |S| + 1 evaluations (2 |S| + 1 for central differences). Too
    small a step loses the difference in rounding: with float32 losses of size 1 the
    error from that is about 1e-7 / mu.

    Whatever draws or looks at a batch has to do so alike in all evaluations: dropout
    off, batch statistics frozen. Call it under `jax.jit`, or it compiles at each call.

    Args:
      loss: From parameters to a number, float32 or wider, on the batch of this step. It
        gets half-precision parameters in float32, in which they are perturbed: 5e-3 is
        below the resolution of most of them. A loss that rounds them again undoes that.
      params: Tree of floating arrays.
      mu: Step, above 0, in units of the parameters.
      mask: Tree of booleans for the entries, each leaf of the parameter's shape or one
        boolean for all of it; None for every entry. It decides how many evaluations
        there are, so it is no argument of a jitted function: a new one compiles anew.
      chunk: Evaluations at a time, 1 or more: memory is that of so many copies of the
        parameters and of what the loss computes; more are faster.
      order: 'forward' or 'central'.

    Returns:
      Loss and estimate; differences are float32 or wider, the estimate has the dtypes
      and, on Explicit axes, the placement of the parameters. An entry along which the
      loss is not finite is not finite; others are not disturbed.

    Raises:
      ValueError: If mu is not above 0, chunk below 1, order unknown, or mask and
        parameters differ in structure or shape.
      TypeError: If parameters are not floating, the mask is traced or not boolean, or
        the loss is no number of float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> for order in ("forward", "central"):
      ...     found = estimators.coordinatewise_value_and_grad(
      ...         lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]), mu=0.1, order=order)
      ...     print([f"{entry:.2f}" for entry in found.grads])
      ['3.31', '12.61']
      ['3.01', '12.01']

    Source:
      A. Chen et al., "DeepZero: scaling up zeroth-order optimization for deep model
      training", 2023, arXiv:2310.02025, CGE, and the authors' code. Differs from it:
      parameters are never changed in place, and vectors can be masked too.
    """
    who = "coordinatewise_value_and_grad"
    _require_settings(who, mu, chunk, order)
    places = _places(who, params, mask)
    wide = links.widen(params)
    value = jnp.asarray(loss(wide))
    links.require_precise_loss(who, value)
    slopes = _slopes(loss, wide, value, places, mu, chunk, order)
    return CoordinatewiseEstimate(value, _scattered(params, places, slopes))


def staged_coordinatewise_value_and_grad(
    stages: Sequence[Callable[[Any, Any], Any]],
    params: Sequence[Any],
    x: Any,
    loss: Callable[[Any], jax.Array],
    *,
    mu: float | jax.Array = 5e-3,
    mask: Any = None,
    chunk: int = 1,
    order: str = "forward",
) -> CoordinatewiseEstimate:
    """Does the same for a model in stages, without computing early ones again.

        h_0 = x,   h_k = f_k(w_k, h_{k-1}),   L = loss(h_K)

    A perturbation in stage k leaves h_{k-1} as it was: the forward pass starts there.
    With K stages of equal cost and size this saves (K - 1) / 2K of the work, nearly
    half of it for deep models. The program holds K (K + 1) / 2 stages, so let a stage
    be a block of a deep model, not a layer. The estimate is that of
    `coordinatewise_value_and_grad` on the composed loss; with a chunk of 1 also in its
    bits, since the same operations are left.

    Args:
      stages: Functions f_k from the parameters of a stage and what the stage before
        gave to what the next one takes.
      params: List or tuple with a tree of floating arrays for each stage.
      x: What the first stage takes.
      loss: From what the last stage gives to a number, float32 or wider.
      mu: Step, above 0, in units of the parameters.
      mask: List or tuple of masks like params; None for every entry.
      chunk: Evaluations at a time, 1 or more.
      order: 'forward' or 'central'.

    Returns:
      Loss and estimate, as `coordinatewise_value_and_grad`. All h are held.

    Raises:
      ValueError: As there; if stages and parameters differ in number, or a stage does
        not take what the one before gives.
      TypeError: As there; if params is no list or tuple.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> stages = [lambda w, x: jnp.tanh(x @ w), lambda w, h: h @ w]
      >>> params, x = [jnp.zeros((2, 1)), jnp.ones(1)], jnp.array([[1.0, -2.0]])
      >>> found = estimators.staged_coordinatewise_value_and_grad(
      ...     stages, params, x, jnp.sum)
      >>> [f"{entry:.3f}" for entry in found.grads[0][:, 0]], float(found.grads[1][0])
      (['1.000', '-2.000'], 0.0)

    Source:
      A. Chen et al., 2023, arXiv:2310.02025, feature reuse.
    """
    who = "staged_coordinatewise_value_and_grad"
    _require_settings(who, mu, chunk, order)
    if not isinstance(params, list | tuple):
        raise TypeError(
            f"{who}: params is a list with one tree for each stage, got"
            f" {type(params).__name__}"
        )
    if len(stages) != len(params) or not stages:
        raise ValueError(
            f"{who}: {len(stages)} stages and parameters for {len(params)}; there is"
            " one tree for each stage, one stage or more"
        )
    places = _places(who, params, mask)
    wide = links.widen(params)
    inputs = [x]
    for k in range(len(stages)):
        inputs.append(_output(who, stages, k, wide[k], inputs))
    value = jnp.asarray(loss(inputs[-1]))
    links.require_precise_loss(who, value)

    def starting_at(k: int) -> Callable[[Any], jax.Array]:
        def rest(own: Any) -> jax.Array:
            h = stages[k](own, inputs[k])
            for stage, later in zip(stages[k + 1 :], wide[k + 1 :], strict=True):
                h = stage(later, h)
            return loss(h)

        return rest

    slopes, first = [], 0
    for k, own in enumerate(wide):
        last = first + len(jax.tree.leaves(own))
        slopes.append(
            _slopes(starting_at(k), own, value, places[first:last], mu, chunk, order)
        )
        first = last
    grads = _scattered(params, places, jnp.concatenate(slopes))
    return CoordinatewiseEstimate(value, grads)


def _slopes(
    loss: Callable[[Any], jax.Array],
    params: Any,
    value: jax.Array,
    places: list[np.ndarray],
    mu: float | jax.Array,
    chunk: int,
    order: str,
) -> jax.Array:
    """Returns the differences along the entries, in the order of `places`."""
    rows = _numbered(places)
    if not len(rows):
        return jnp.zeros(0, value.dtype)

    def slope(row: jax.Array) -> jax.Array:
        ahead = loss(_moved(params, row, mu))
        if order == "forward":
            return (ahead - value) / mu
        return (ahead - loss(_moved(params, row, -mu))) / (2 * mu)

    # A batch of one would be a batch still: other products, and other bits.
    size = None if chunk == 1 else chunk
    found = jax.lax.map(slope, jnp.asarray(rows), batch_size=size)
    return found.astype(value.dtype)


def _places(who: str, params: Any, mask: Any) -> list[np.ndarray]:
    """Lists for each leaf the indices (n, ndim) of its entries; a scalar is (1,)."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, x in leaves:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(
                f"{who}: leaf '{trees.path_string(path)}' is of {jnp.result_type(x)};"
                " only floating parameters can be perturbed. Close over the others"
            )
    shapes = [jnp.shape(x) for _, x in leaves]
    if mask is None:
        return [np.argwhere(np.ones(shape or 1, bool)) for shape in shapes]
    given = {
        trees.path_string(path): chosen
        for path, chosen in jax.tree_util.tree_leaves_with_path(mask)
    }
    names = [trees.path_string(path) for path, _ in leaves]
    if given.keys() != {*names}:
        strange = sorted(given.keys() ^ {*names})
        raise ValueError(
            f"{who}: mask and parameters are trees of other structure; only one of"
            f" them has {strange}"
        )
    return [
        np.argwhere(np.atleast_1d(_whole_mask(who, name, given[name], shape)))
        for name, shape in zip(names, shapes, strict=True)
    ]


def _whole_mask(who: str, name: str, chosen: Any, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(chosen, core.Tracer):
        raise TypeError(
            f"{who}: the mask of leaf '{name}' is traced, but it decides how many"
            " evaluations there are; close over it instead of passing it to jax.jit"
        )
    array = np.asarray(chosen)
    if array.dtype != bool:
        raise TypeError(
            f"{who}: the mask of leaf '{name}' is of {array.dtype}, not boolean"
        )
    if array.shape not in ((), shape):
        raise ValueError(
            f"{who}: leaf '{name}' has shape {shape} and its mask {array.shape}; give"
            " a boolean for each entry, or one for the leaf"
        )
    return np.broadcast_to(array, shape)


def _numbered(places: list[np.ndarray]) -> np.ndarray:
    """Joins the indices of all leaves: rows of leaf number, index along each axis."""
    axes = max((place.shape[1] for place in places), default=0)
    rows = np.zeros((sum(map(len, places)), 1 + axes), np.int32)
    start = 0
    for number, place in enumerate(places):
        part = rows[start : start + len(place)]
        part[:, 0] = number
        part[:, 1 : 1 + place.shape[1]] = place
        start += len(place)
    return rows


def _moved(params: Any, row: jax.Array, step: float | jax.Array) -> Any:
    """Adds a step to one entry of a tree, without asking where the tree lies."""
    leaves, structure = jax.tree.flatten(params)

    def moved(number: int, x: jax.Array) -> jax.Array:
        here = row[0] == number
        for axis, size in enumerate(x.shape):
            along = jnp.arange(size) == row[1 + axis]
            here = here & along.reshape(-1, *(1,) * (x.ndim - axis - 1))
        return x + jnp.where(here, step, 0).astype(x.dtype)

    return structure.unflatten(moved(*pair) for pair in enumerate(leaves))


def _scattered(params: Any, places: list[np.ndarray], slopes: jax.Array) -> Any:
    """Puts the differences where they belong, in the dtypes of the parameters."""
    leaves, structure = jax.tree.flatten(params)
    out, start = [], 0
    for x, place in zip(leaves, places, strict=True):
        own = slopes[start : start + len(place)]
        start += len(place)
        shape, sharding = jnp.shape(x), jax.typeof(x).sharding
        grad = jnp.zeros(shape or 1, slopes.dtype).at[tuple(place.T)].set(own)
        grad = grad.reshape(shape).astype(jnp.result_type(x))
        out.append(jax.reshard(grad, sharding) if any(sharding.spec) else grad)
    return structure.unflatten(out)


def _output(
    who: str, stages: Sequence[Any], k: int, params: Any, inputs: list[Any]
) -> Any:
    """Runs a stage, and names it if it does not take what it gets."""
    try:
        return stages[k](params, inputs[k])
    except (TypeError, ValueError) as error:
        shapes = jax.tree.map(jnp.shape, inputs[k])
        before = "x" if k == 0 else f"what stage {k - 1} gives"
        raise ValueError(
            f"{who}: stage {k} does not take {before}, of shape {shapes}: {error}"
        ) from error


def _require_settings(who: str, mu: Any, chunk: int, order: str) -> None:
    links.require_positive(who, mu=mu)
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f"{who}: chunk must be an integer of 1 or more, got {chunk!r}")
    if order not in ORDERS:
        raise ValueError(f"{who}: order must be one of {ORDERS}, got {order!r}")
