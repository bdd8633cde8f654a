"""What optimizers of every family share: links for rate and precision, a product."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, PartitionSpec

from optlab import trees


class ScaleByLearningRateState(NamedTuple):
    """State of `scale_by_learning_rate`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      learning_rate: Rate of the latest update (before the first: of the first), shape
        (), float32 (float64 when 64-bit types are on). With a schedule for each group
        a dictionary of them.
      settings: Values of a steered schedule by name, shape (), int32 or float32; empty
        for any other rate. `optax.tree.set` changes them.
    """

    count: jax.Array
    learning_rate: Any
    settings: Any


def scale_by_learning_rate(
    learning_rate: float | jax.Array | optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the learning rate and keeps the rate in the state.

    Optax's link of this name has an empty state for a constant and a counter for a
    schedule, so a run cannot swap one for the other when it resumes, and the rate in
    force can be read from neither. Here both have one layout: step and rate.

        u_t = -eta(t) u_t,   t = updates applied before this one

    Two kinds of schedule say more about themselves: one with an attribute `values`
    (`schedules.steered`) has these kept in the state and is called with them by name;
    one with an attribute `labels` (`schedules.per_group`) returns a rate for each
    group, and a leaf gets the rate of its label.

    Args:
      learning_rate: Rate eta, a number, a scalar array (it may be traced), or a
        schedule from the step to the rate.

    Returns:
      A transformation whose state is a `ScaleByLearningRateState`. The rate stays in
      float32 or wider whatever the dtype of the updates; updates keep their dtype.

    Raises:
      ValueError: If a leaf has the label of a group without a schedule, or the state
        was made for a schedule with other values.
      TypeError: If a setting that counts steps was set to another kind of number.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> tx = links.scale_by_learning_rate(lambda count: 0.5 / (1 + count))
      >>> state = tx.init(jnp.ones(2))
      >>> updates, state = tx.update(jnp.ones(2), state)
      >>> updates, state = tx.update(jnp.ones(2), state)
      >>> print(updates, state.count, state.learning_rate)
      [-0.25 -0.25] 2 0.25

    Source:
      Optax's `scale_by_learning_rate`, with the state described above.
    """
    values = getattr(learning_rate, "values", {}) if callable(learning_rate) else {}
    labels = getattr(learning_rate, "labels", None)

    def rate(count: jax.Array, settings: Any) -> Any:
        value = learning_rate
        if callable(learning_rate):
            value = learning_rate(count, **settings)
        # The default float, never the parameters' dtype. A copy, because the caller's
        # array must not be donated together with the state.
        return jax.tree.map(lambda v: jnp.array(v, dtype=float), value)

    def init(params: optax.Params) -> ScaleByLearningRateState:
        del params
        count = jnp.zeros((), jnp.int32)
        settings = jax.tree.map(lambda v: jnp.array(v, _dtype(v)), values)
        return ScaleByLearningRateState(count, rate(count, settings), settings)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLearningRateState]:
        del params, extra_args
        if set(values) != set(state.settings):
            raise ValueError(
                f"scale_by_learning_rate: the state has settings"
                f" {sorted(state.settings)}, the schedule values {sorted(values)}; a"
                " run starts and resumes with the same values in its state"
            )
        settings = jax.tree_util.tree_map_with_path(_like, values, state.settings)
        eta = rate(state.count, settings)
        if labels is None:
            updates = jax.tree.map(lambda u: (-eta * u).astype(u.dtype), updates)
        else:
            etas = _by_group(labels, eta, updates)
            updates = jax.tree.map(lambda u, e: (-e * u).astype(u.dtype), updates, etas)
        return updates, ScaleByLearningRateState(
            jnp.asarray(optax.safe_increment(state.count)), eta, settings
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _dtype(value: Any) -> Any:
    """Returns the dtype in which a setting is kept: steps in int32."""
    return jnp.int32 if jnp.issubdtype(jnp.result_type(value), jnp.integer) else float


def _like(path: Any, value: Any, setting: Any) -> jax.Array:
    """Gives a setting, which anyone may have set, the dtype of its initial value."""
    if _dtype(value) is not _dtype(setting) and _dtype(value) is jnp.int32:
        raise TypeError(
            f"scale_by_learning_rate: setting '{path[-1].key}' is an integer, got"
            f" {setting}; set it to jnp.int32(...)"
        )
    return jnp.asarray(setting, _dtype(value))


def _by_group(labels: Any, rates: dict[str, Any], tree: Any) -> Any:
    """Returns a tree with the rate of each leaf's group."""

    def fill(path: Any, label: str, part: Any) -> Any:
        if label not in rates:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"scale_by_learning_rate: leaf '{where}' has the label {label!r}; there"
                f" are schedules for {sorted(rates)}"
            )
        return jax.tree.map(lambda _: rates[label], part)

    labels = labels(tree) if callable(labels) else labels
    return jax.tree_util.tree_map_with_path(fill, labels, tree)


def inner_product(a: Any, b: Any, *, normalize: bool = False) -> jax.Array:
    """Multiplies two trees entry by entry and sums everything up.

    Args:
      a: Tree of arrays.
      b: Tree of the same structure and shapes.
      normalize: Whether to divide by both norms, which gives the cosine of the angle
        between the trees; 0 where a norm is zero or not a number.

    Returns:
      The product, shape (), float32 or wider, over all devices of a mesh.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> a, b = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, 2.0])}
      >>> print(links.inner_product(a, b), links.inner_product(a, b, normalize=True))
      8.0 0.8

    Source:
      Not `optax.tree.vdot`, which flattens leaves: an Explicit mesh refuses that.
    """
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    product = jnp.asarray(optax.tree.sum(products), float)
    if not normalize:
        return product
    norms = optax.tree.norm(a) * optax.tree.norm(b)
    return jnp.where(norms > 0, product / jnp.where(norms > 0, norms, 1), 0)


def widen(tree: Any) -> Any:
    """Casts the half-precision leaves of a tree to float32 and leaves the others.

    Args:
      tree: Tree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      The tree; bfloat16 and float16 leaves have become float32.
    """

    def wide(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize >= 4:
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return x.update(dtype=jnp.dtype(jnp.float32))
        return x.astype(jnp.float32)

    return jax.tree.map(wide, tree)


def in_float32(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation in float32 when updates or parameters are narrower.

    Optax's second moments have the dtype of the parameters. In bfloat16 an average
    with decay 0.999 cannot move: 0.999 is not even representable there. Behind this
    link the inner state is at least float32, and each update leaves with the dtype it
    came with. float32 and float64 trees pass through unchanged.

    Args:
      inner: The transformation to run.

    Returns:
      A transformation with the inner one's state.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import links
      >>> tx = links.in_float32(optax.scale_by_adam())
      >>> g = jnp.ones(2, jnp.bfloat16)
      >>> updates, state = tx.update(g, tx.init(g))
      >>> print(updates.dtype, state.nu.dtype)
      bfloat16 float32

    Source:
      Written for this library.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> Any:
        return inner.init(widen(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        wide, state = inner.update(widen(updates), state, widen(params), **extra_args)
        return jax.tree.map(lambda w, u: w.astype(u.dtype), wide, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def settled(x: jax.Array) -> jax.Array:
    """Keeps a small buffer of the state whole on meshes with Auto axes.

    Left to the compiler, a few numbers made from a sharded leaf lie on one device here
    and on another there, and move from step to step.

    Args:
      x: Buffer, before it is returned by `init` or `update`.

    Returns:
      The buffer, on every device if the mesh in force has Auto axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> print(links.settled(jnp.ones(2)))
      [1. 1.]

    Source:
      Written for this library.
    """
    if AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types:
        return jax.lax.with_sharding_constraint(x, PartitionSpec())
    return x


def add_decayed_weights(
    weight_decay: float | jax.Array, mask: Any = None, *, cautious: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Adds decoupled weight decay, on request only where it helps the update.

        u_i = u_i + weight_decay w_i                          plain
        u_i = u_i + weight_decay w_i   where u_i w_i >= 0     cautious

    Updates have no sign yet: where u_i w_i > 0 the step -eta u_i shrinks the weight, as
    decay does. Elsewhere the optimizer wants the weight to grow, and cautious decay
    does not hold it back; it changes how fast training gets there, not the stationary
    points of the loss.

    Args:
      weight_decay: Factor on the weights.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      cautious: Whether to decay only as above.

    Returns:
      A transformation that needs the parameters and keeps no state.

    Raises:
      ValueError: If the parameters are missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> tx = links.add_decayed_weights(0.5, cautious=True)
      >>> w, u = jnp.array([2.0, 2.0]), jnp.array([1.0, -1.0])
      >>> print(tx.update(u, tx.init(w), w)[0])
      [ 2. -1.]

    Source:
      I. Loshchilov, F. Hutter, 2017, arXiv:1711.05101 (plain, as Optax has it); L. Chen
      et al., "Cautious weight decay", 2025, arXiv:2510.12402.
    """
    if not cautious:
        return optax.with_extra_args_support(
            optax.add_decayed_weights(weight_decay, mask)
        )

    def decay(u: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.where(u * w >= 0, u + weight_decay * w, u).astype(u.dtype)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        if params is None:
            raise ValueError(
                "add_decayed_weights: needs the parameters: update(..., params)"
            )
        return jax.tree.map(decay, updates, params), state

    link = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    return link if mask is None else optax.masked(link, mask)


def matrices_and_rest(
    matrices: Callable[[Any], optax.GradientTransformation],
    rest: optax.GradientTransformation | None,
    views: Any,
) -> optax.GradientTransformationExtraArgs:
    """Sends the matrices of a model to one transformation and the rest to another.

    The views are found on the whole tree: inside the partition the leaves of the rest
    are hidden, and how a leaf is read may depend on its neighbours.

    Args:
      matrices: From the tree of views to the transformation of the matrices.
      rest: Transformation of all other leaves, its own learning rate included; None
        leaves all to the first, which must refuse what is no matrix.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.

    Returns:
      The transformation of the whole tree.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import links, trees
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> tx = links.matrices_and_rest(
      ...     lambda views: optax.scale(2.0), optax.scale(3.0), trees.matrix_views
      ... )
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> print(updates["bias"])
      [3. 3.]

    Source:
      Written for this library, on `optax.partition`.
    """
    alone = matrices(views)  # built even beside a rest: it checks the arguments now
    if rest is None:
        return optax.with_extra_args_support(alone)

    def routed(tree: Any) -> optax.GradientTransformationExtraArgs:
        found = views(tree) if callable(views) else views
        return optax.partition(
            {"matrix": matrices(found), "rest": rest}, trees.labels(found)
        )

    def init(params: optax.Params) -> Any:
        return routed(params).init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        return routed(updates).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)
