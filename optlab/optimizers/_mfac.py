"""M-FAC: the gradient through the inverse of a Fisher matrix of the last gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optlab import kernels, links


class ScaleByMfacState(NamedTuple):
    """State of `scale_by_mfac`, for a window of m gradients.

    Attributes:
      count: Updates applied so far, shape (), int32.
      window: Like the parameters with a leading axis m: the last gradients, each
        divided by its norm over the whole tree; sharded like the parameters, unless
        they are vectors (`flat`). A single zero where there are no parameters.
      norms: Those norms, shape (m,); 0 where the window is still empty.
      gram: Products of the divided gradients, shape (m, m).
      momentum: Shaped like the parameters, or None without b1.
    """

    count: jax.Array
    window: Any
    norms: jax.Array
    gram: jax.Array
    momentum: Any


def scale_by_mfac(
    *,
    window: int = 1024,
    damping: float | jax.Array = 1e-5,
    b1: float | jax.Array | None = None,
    flat: bool = False,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradient by the inverse of an empirical Fisher matrix.

    The matrix covers all parameters at once and is never formed: the last m gradients
    and their products with each other say all about its inverse.

        F_t = damping I + (1 / m) (sum over the last m gradients of g g^T)
        u_t = F_t^-1 g_t                    (F_t has seen g_t)
        v_t = b1 v_{t-1} + (1 - b1) u_t     (if b1 is given; then v_t is the update)

    The sum is divided by m from the first step on, so early updates are long: the
    first one is about m g / |g|^2.

    Args:
      window: Number m of gradients that are kept; m copies of the parameters.
      damping: Damping, above 0, in units of the gradient squared.
      b1: Decay of the average of directions, in [0, 1); None keeps none.
      flat: Whether rows of the window are vectors. They do not follow the placement of
        the parameters then; but on CPU, XLA copies a window of arrays with two or more
        axes in each step, and a window of vectors never.
      accumulator_dtype: Dtype of window and momentum; None means float32 or wider. The
        products are float32 or wider in any case.

    Returns:
      A transformation without learning rate and sign; a zero gradient gives a zero
      direction. A gradient that is not finite spoils m updates, of all leaves: put
      `optax.apply_if_finite` around. Donate the state, or each step copies the window.

    Raises:
      ValueError: If window is no positive integer or damping not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_mfac(window=4)
      >>> g = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [f"{entry:.4f}" for entry in updates]  # 4 g / |g|^2
      ['0.4800', '0.6400']

    Source:
      See `mfac`.
    """
    if int(window) != window or window < 1:
        raise ValueError(f"scale_by_mfac: window must be at least 1, got {window}")
    if isinstance(damping, float | int) and not damping > 0:
        raise ValueError(f"scale_by_mfac: damping must be above 0, got {damping}")

    def init(params: optax.Params) -> ScaleByMfacState:
        zeros = optax.tree.zeros_like(links.widen(params), dtype=accumulator_dtype)
        rows: Any = jax.tree.map(
            lambda z: jnp.broadcast_to(
                z.ravel() if flat else z, (window, *((z.size,) if flat else z.shape))
            ),
            zeros,
        )
        if not jax.tree.leaves(rows):
            # Optax asks in this way which parts of a state are shaped like the
            # parameters; the window is not.
            rows = jnp.zeros(())
        dtypes = (leaf.dtype for leaf in jax.tree.leaves(params))
        dtype = jnp.result_type(jnp.float32, *dtypes)
        return ScaleByMfacState(
            jnp.zeros((), jnp.int32),
            rows,
            jnp.zeros(window, dtype),
            jnp.zeros((window, window), dtype),
            None if b1 is None else zeros,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMfacState]:
        del params, extra_args
        count = jnp.asarray(optax.safe_increment(state.count))
        if not jax.tree.leaves(updates):
            return updates, state._replace(count=count)
        state = jax.tree.map(jnp.asarray, state)  # restored ones may be NumPy's
        row = state.count % window
        grads = links.widen(updates)
        norm = links.tree_norm(grads).astype(state.norms.dtype)
        unit = jax.tree.map(lambda g: g / jnp.where(norm == 0, 1, norm), grads)
        if flat:
            unit = jax.tree.map(jnp.ravel, unit)
        rows = jax.tree.map(
            lambda w, g: w.at[row].set(g.astype(w.dtype)), state.window, unit
        )
        products = sum(jax.tree.leaves(jax.tree.map(lambda w: _products(w, row), rows)))
        products = jnp.asarray(products, state.gram.dtype)
        gram = state.gram.at[row].set(products).at[:, row].set(products)
        norms = state.norms.at[row].set(norm)
        newest = jnp.zeros_like(norms).at[row].set(1.0)
        weights = kernels.window_weights(gram, norms, newest, damping)
        direction = jax.tree.map(lambda w, g: _combined(w, weights, g), rows, grads)
        direction, momentum = _averaged(b1, state.momentum, direction)
        out = jax.tree.map(lambda d, u: d.astype(u.dtype), direction, updates)
        return out, ScaleByMfacState(count, rows, norms, gram, momentum)

    return optax.GradientTransformationExtraArgs(init, update)


def _averaged(b1: float | jax.Array | None, averages: Any, tree: Any) -> Any:
    """Returns the direction of the step and the momentum to keep, None without b1."""
    if b1 is None:
        return tree, None
    new = jax.tree.map(
        lambda v, u: b1 * v.astype(u.dtype) + (1 - b1) * u, averages, tree
    )
    return new, jax.tree.map(lambda u, v: u.astype(v.dtype), new, averages)


def _products(window: jax.Array, row: jax.Array) -> jax.Array:
    """Multiplies one row of a leaf's window with all rows, in float32 or wider."""
    rows = jnp.promote_types(window.dtype, jnp.float32)
    newest = window[row].astype(rows)
    axes = tuple(range(newest.ndim))
    sharding = jax.typeof(newest).sharding
    return jax.lax.dot_general(
        window.astype(rows),
        newest,
        ((tuple(axis + 1 for axis in axes), axes), ((), ())),
        precision="highest",
        # On Explicit axes the sum over sharded axes has to be placed.
        out_sharding=(
            NamedSharding(sharding.mesh, PartitionSpec())
            if any(sharding.spec)
            else None
        ),
    )


def _combined(window: jax.Array, weights: jax.Array, like: jax.Array) -> jax.Array:
    """Adds up the rows of a leaf's window."""
    rows = jnp.promote_types(window.dtype, jnp.float32)
    total = jnp.tensordot(
        weights.astype(rows), window.astype(rows), axes=1, precision="highest"
    )
    return total.astype(like.dtype).reshape(like.shape)


def mfac(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    window: int = 1024,
    damping: float | jax.Array = 1e-5,
    b1: float | jax.Array | None = None,
    l2: float | jax.Array = 0.0,
    mask: Any = None,
    flat: bool = False,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """M-FAC: natural gradient with the Fisher matrix of the last m gradients.

    The update is that of `scale_by_mfac` for g_t + l2 w_{t-1}, then

        w_t = w_{t-1} - eta_t v_t

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      window: Number m of gradients that are kept; m copies of the parameters.
      damping: Damping, above 0, in units of the gradient squared.
      b1: Decay of the average of directions, in [0, 1); None keeps none.
      l2: Multiple of the parameters that is added to the gradient; it enters the
        window too.
      mask: Which leaves have it: tree of booleans or a function of the parameters.
      flat: Whether rows of the window are vectors, see `scale_by_mfac`.
      accumulator_dtype: Dtype of window and momentum; None means float32 or wider.

    Returns:
      A transformation; see `scale_by_mfac` for its limits.

    Raises:
      ValueError: As `scale_by_mfac`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = jnp.array([3.0, 4.0])
      >>> tx = optimizers.mfac(1.0, window=4)
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.4800', '-0.6400']

    Source:
      Frantar, Kurtic, Alistarh, "M-FAC: efficient matrix-free approximations of
      second-order information", 2021, arXiv:2107.03356, dynamic algorithm. Differs from
      the authors' code: Cholesky of scaled products for its LU without pivots, no
      division by the damping, and a floor on the damping where float32 needs one, see
      `kernels.window_weights`. For the static algorithm take `kernels.window_solve`.
    """
    return links.in_float32(
        optax.chain(
            optax.add_decayed_weights(l2, mask),
            scale_by_mfac(
                window=window,
                damping=damping,
                b1=b1,
                flat=flat,
                accumulator_dtype=accumulator_dtype,
            ),
            links.scale_by_learning_rate(learning_rate),
        )
    )
