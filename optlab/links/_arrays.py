"""What links do to arrays: products, precision, placement."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, PartitionSpec


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


def norm_over(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Measures norms over some axes; squares of large entries do not overflow.

    Args:
      x: Array; of no entries the norm is 0.
      axes: Axes to sum over.

    Returns:
      The Euclidean norms; these axes stay, with size 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> print(links.norm_over(jnp.array([[3e30, 4e30]]), (1,)))
      [[5.e+30]]

    Source:
      Written for this library.
    """
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0.0)
    unit = x / jnp.where(largest == 0, 1, largest)
    return largest * jnp.sqrt(jnp.sum(unit * unit, axes, keepdims=True))


def tree_norm(tree: Any) -> jax.Array:
    """Measures the norm over all leaves; squares of large entries do not overflow.

    Args:
      tree: Tree of arrays; of no entries the norm is 0.

    Returns:
      The Euclidean norm, shape (), float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> print(links.tree_norm({"w": jnp.array([3e30]), "b": jnp.array([4e30])}))
      5e+30

    Source:
      Written for this library.
    """
    leaves = [x for x in jax.tree.leaves(widen(tree)) if x.size] or [jnp.zeros(1)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves]))
    unit = jnp.where(largest == 0, 1, largest)
    return largest * optax.tree.norm(jax.tree.map(lambda x: x / unit, leaves))
