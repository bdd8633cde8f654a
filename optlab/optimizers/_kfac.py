"""K-FAC: Kronecker factors of the Fisher matrix of each layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees


class ScaleByKfacState(NamedTuple):
    """State of `scale_by_kfac`; one entry for each shape (m, n) of a layer's matrix.

    Attributes:
      count: Updates applied so far, shape (), int32.
      input_factors: Mean second moments of the inputs, shapes (K, m, m). A single zero
        where there are no layers.
      output_factors: Of the gradients at the outputs, shapes (K, n, n).
      input_inverses: Damped inverses of the former, as of the last refresh.
      output_inverses: Damped inverses of the latter.
    """

    count: jax.Array
    input_factors: Any
    output_factors: Any
    input_inverses: Any
    output_inverses: Any


def scale_by_kfac(
    *,
    decay: float | jax.Array = 0.95,
    damping: float | jax.Array = 1e-3,
    every: int = 5,
    method: str = "cholesky",
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each layer's gradient by the inverse of a Kronecker-factored Fisher.

    A layer is a kernel with its bias as one more row, G of shape (m, n). A and S are
    decaying means, corrected for their start, of the second moments of its input and of
    the gradients at its output:

        pi = sqrt((tr A / m) / (tr S / n))
        U = (A + pi sqrt(damping) I)^-1 G (S + sqrt(damping) / pi I)^-1

    All leaves that belong to no layer pass through as they are. Updates need
    `layer_stats`, a dict from the path of each layer to `trees.LayerStats` with second
    moments; `optlab.lab.capture` makes it for Flax models. With gradients of labels
    drawn from the model it is the Fisher matrix, with those of the data the empirical
    one.

    Args:
      decay: Decay of the mean moments, in [0, 1).
      damping: Damping of the whole, above 0; a large one gives gradient / damping.
      every: Steps from one inversion to the next.
      method: 'cholesky', 'eigh' or 'newton_schulz', see `kernels.damped_inverse`.
      views: Tree of `trees.MatrixView` or the function that finds it; None where a leaf
        shall pass through.

    Returns:
      A transformation without learning rate and sign; a zero gradient gives a zero
      update. On a mesh every device holds all factors and whole gradients.

    Raises:
      ValueError: If an argument is unknown or out of range; as
        `trees.layer_statistics`.
      TypeError: If `layer_stats` is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers, trees
      >>> g, one = {"up": {"kernel": jnp.array([[3.0]])}}, jnp.ones((1, 1))
      >>> stats = {"up": trees.LayerStats(one[0], one[0], 4 * one, one)}
      >>> tx = optimizers.scale_by_kfac(damping=1e-6)
      >>> u, _ = tx.update(g, tx.init(g), layer_stats=stats)
      >>> print(u["up"]["kernel"].round(2))  # 3 / (4 * 1)
      [[0.75]]

    Source:
      See `kfac`.
    """
    _check(method, every, damping)

    def init(params: optax.Params) -> ScaleByKfacState:
        return _initial(params, trees.layer_groups(params, views))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        layer_stats: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByKfacState]:
        del params, extra_args
        count = jnp.asarray(optax.safe_increment(state.count))
        wide = links.widen(updates)
        groups = trees.layer_groups(wide, views)
        if not groups:
            return updates, state._replace(count=count)
        moments = trees.layer_statistics(
            "scale_by_kfac", layer_stats, groups, moments=2
        )
        factors = [
            tuple(_mean(old, new, decay) for old, new in zip(pair, given, strict=True))
            for *pair, given in zip(
                state.input_factors, state.output_factors, moments, strict=True
            )
        ]
        weight = 1 - decay**count

        def inverted() -> list[tuple[jax.Array, jax.Array]]:
            corrected = [
                tuple((x / weight).astype(x.dtype) for x in pair) for pair in factors
            ]
            return [_inverses(a, s, damping, method) for a, s in corrected]

        inverses = jax.lax.cond(
            state.count % every == 0,
            inverted,
            lambda: list(zip(state.input_inverses, state.output_inverses, strict=True)),
        )
        # On Auto axes the compiler would cut them as it likes.
        factors, inverses = trees.gathered((factors, inverses))
        stacks, restore = trees.layer_stacks(wide, groups)
        directions = [
            jnp.einsum("kij,kjl,klm->kim", a, stack, s, precision="highest")
            for stack, (a, s) in zip(stacks, inverses, strict=True)
        ]
        out = jax.tree.map(lambda o, u: o.astype(u.dtype), restore(directions), updates)
        return out, ScaleByKfacState(
            count, *zip(*factors, strict=True), *zip(*inverses, strict=True)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check(method: str, every: int, damping: Any) -> None:
    if method not in kernels.INVERSE_METHODS:
        raise ValueError(
            f"scale_by_kfac: method must be one of {kernels.INVERSE_METHODS}, got"
            f" {method!r}"
        )
    if int(every) != every or every < 1:
        raise ValueError(f"scale_by_kfac: every must be at least 1, got {every}")
    if isinstance(damping, float | int) and not damping > 0:
        raise ValueError(f"scale_by_kfac: damping must be above 0, got {damping}")


def _initial(params: optax.Params, groups: Any) -> ScaleByKfacState:
    count = jnp.zeros((), jnp.int32)
    if not groups:
        return ScaleByKfacState(count, *(jnp.zeros(()) for _ in range(4)))
    dtypes = (leaf.dtype for leaf in jax.tree.leaves(params))
    dtype = jnp.result_type(jnp.float32, *dtypes)

    def zeros(axis: int) -> tuple[jax.Array, ...]:
        sizes = [(sum(x.shape[0] for x in g), g[0].shape[axis]) for g in groups]
        return tuple(jnp.zeros((k, size, size), dtype) for k, size in sizes)

    return ScaleByKfacState(count, *(zeros(axis) for axis in (1, 2, 1, 2)))


def _mean(old: jax.Array, new: jax.Array, decay: float | jax.Array) -> jax.Array:
    return (decay * old + (1 - decay) * new.astype(old.dtype)).astype(old.dtype)


def _inverses(a, s, damping, method):
    """Splits the damping between both factors of a stack, and inverts them."""

    def trace(x: jax.Array) -> jax.Array:
        return jnp.trace(x, axis1=-2, axis2=-1) / x.shape[-1]

    one, other = trace(a), trace(s)
    known = (one > 0) & (other > 0)
    pi = jnp.sqrt(jnp.where(known, one, 1) / jnp.where(known, other, 1))
    root = jnp.sqrt(jnp.asarray(damping, a.dtype))
    return (
        kernels.damped_inverse(a, pi * root, method).astype(a.dtype),
        kernels.damped_inverse(s, root / pi, method).astype(s.dtype),
    )


def kfac(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float | jax.Array | None = 0.9,
    decay: float | jax.Array = 0.95,
    damping: float | jax.Array = 1e-3,
    every: int = 5,
    method: str = "cholesky",
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC: natural gradients layer by layer, with momentum.

    The direction u_t is that of `scale_by_kfac`, then

        v_t = momentum v_{t-1} + u_t
        w_t = w_{t-1} - eta_t (v_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      momentum: Decay of the sum of directions, in [0, 1); None keeps none.
      decay: Decay of the mean moments, in [0, 1).
      damping: Damping, above 0.
      every: Steps from one inversion to the next.
      method: 'cholesky', 'eigh' or 'newton_schulz'.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      views: As for `scale_by_kfac`.

    Returns:
      A transformation; updates take `layer_stats` with second moments.

    Raises:
      ValueError: As `scale_by_kfac`.
      TypeError: As `scale_by_kfac`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers, trees
      >>> p, one = {"up": {"kernel": jnp.array([[3.0]])}}, jnp.ones((1, 1))
      >>> stats = {"up": trees.LayerStats(one[0], one[0], 4 * one, one)}
      >>> tx = optimizers.kfac(0.1, damping=1e-6)
      >>> u, _ = tx.update(p, tx.init(p), p, layer_stats=stats)
      >>> print(u["up"]["kernel"].round(3))
      [[-0.075]]

    Source:
      Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate
      curvature", 2015, arXiv:1503.05671, sections 3 and 6.3. Differs from kfac-jax:
      the moments are given and not found; rate, momentum and damping are the user's,
      without the quadratic model and the Levenberg-Marquardt rule; no norm constraint.
    """
    core = scale_by_kfac(
        decay=decay, damping=damping, every=every, method=method, views=views
    )
    if momentum is not None:
        core = optax.chain(core, optax.trace(momentum))
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
