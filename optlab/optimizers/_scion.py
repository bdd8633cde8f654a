"""Scion: every layer moves over the ball of a norm of its own."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees

_HEADS = re.compile(r"(.*/)?((lm_|output_|classifier_)?head|logits|classifier)/.*")


class ScaleByScionState(NamedTuple):
    """State of `scale_by_scion`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: Shaped like the parameters; float32 or wider, or `accumulator_dtype`.
    """

    count: jax.Array
    momentum: Any


def scion_norms(params: Any) -> Any:
    """Tells which norm a leaf of a Flax model has in `scion`.

    'spectral' for what `trees.matrix_views` calls a matrix, 'sign' for the kernel of an
    output head, 'rms' for all else: embeddings, biases, norms.

    Args:
      params: Tree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Tree of the same structure with a name at each leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
      ...           "head": {"kernel": jnp.ones((3, 9))}}
      >>> optimizers.scion_norms(params)["head"], optimizers.scion_norms(params)["up"]
      ({'kernel': 'sign'}, {'bias': 'rms', 'kernel': 'spectral'})

    Source:
      The roles of T. Pethick et al., see `scion`; that names tell them is our own rule.
    """
    labels = trees.labels(trees.matrix_views(params))

    def norm(path: Any, leaf: Any, label: str) -> str:
        head = jnp.ndim(leaf) == 2 and _HEADS.fullmatch(trees.path_string(path))
        return "spectral" if label == "matrix" else "sign" if head else "rms"

    return jax.tree_util.tree_map_with_path(norm, params, labels)


def _unit(x: jax.Array, axis: int, mean: bool) -> jax.Array:
    """Divides vectors along an axis by their length, or RMS; zero ones stay zero."""
    if not x.size:
        return x
    # The largest entry is divided out first, or squares of 1e30 would overflow.
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    y = x / jnp.where(largest == 0, 1, largest)
    size = (jnp.mean if mean else jnp.sum)(y * y, axis=axis, keepdims=True)
    return y / jnp.sqrt(jnp.where(size == 0, 1, size))


# From (..., m, n), or for 'rms' from vectors along the last axis, to the far end of the
# unit ball.
_ENDS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sign": lambda x: jnp.sign(x) / max(x.shape[-2], 1),
    "row": lambda x: _unit(x, -2, mean=False) / max(x.shape[-2], 1) ** 0.5,
    "rms": lambda x: _unit(x, -1, mean=True) if x.ndim else jnp.sign(x),
}


def scale_by_scion(
    *,
    b1: float | jax.Array = 0.9,
    norms: Any = scion_norms,
    radius: Mapping[str, float] | None = None,
    orthogonalize: Callable[[jax.Array], jax.Array] = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients and takes the far end of a ball in the norm of each leaf.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = argmax of <m_t, u> over ||u|| <= radius

    With m_t written (fan-in m, fan-out n), or as vectors along its last axis, the ends
    are, times the radius:

        ========  ======================================  ==============================
        spectral  sqrt(n / m) polar(m_t)                  hidden matrices
        sign      sign(m_t) / m                           output heads
        row       columns of Euclidean length 1/sqrt(m)   output heads
        rms       vectors of root mean square 1           embeddings, biases, norms
        ========  ======================================  ==============================

    'row' is named after the authors' layout (out, in): what one output unit takes in.

    Args:
      b1: Decay of the momentum, in [0, 1); the authors' alpha is 1 - b1.
      norms: Tree of the names above, or a function from the tree to it.
      radius: Radius by name; 1 where a name is missing.
      orthogonalize: Kernel, (..., m, n) -> (..., m, n).
      views: Tree of `trees.MatrixView`, or a function to it, for 'spectral' leaves.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation without learning rate and sign; updates keep the dtype of those
      that come in. Where the momentum is zero the update is zero.

    Raises:
      ValueError: If a norm is unknown or does not fit its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_scion(radius={"sign": 4.0})
      >>> g = {"head": {"kernel": jnp.array([[3.0, -1.0], [2.0, 0.0]])},
      ...      "bias": jnp.array([3.0, -4.0])}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> print(updates["head"]["kernel"])
      [[ 2. -2.]
       [ 2.  0.]]
      >>> [f"{entry:.3f}" for entry in updates["bias"]]
      ['0.849', '-1.131']

    Source:
      See `scion`.
    """
    radii = dict(radius or {})
    unknown = sorted(set(radii) - {"spectral", *_ENDS})
    if unknown:
        raise ValueError(
            f"scale_by_scion: radius has {unknown}; norms are"
            f" {sorted(('spectral', *_ENDS))}"
        )

    def init(params: optax.Params) -> ScaleByScionState:
        _checked(params, norms)
        zeros = optax.tree.zeros_like(links.widen(params), dtype=accumulator_dtype)
        return ScaleByScionState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByScionState]:
        del params, extra_args
        names = _checked(updates, norms)
        sums = jax.tree.map(
            lambda m, g: b1 * m.astype(g.dtype) + (1 - b1) * g,
            state.momentum,
            links.widen(updates),
        )
        found = views(updates) if callable(views) else views
        stacks, restore = trees.matrix_stacks(
            "scale_by_scion",
            jax.tree.map(lambda n, m: m if n == "spectral" else None, names, sums),
            found,
            resharding=getattr(orthogonalize, "reshards", False),
        )
        polar = restore(list(map(_spectral, links.on_each(orthogonalize, stacks))))

        def end(name: str, m: jax.Array, o: Any, u: jax.Array) -> jax.Array:
            end = o if name == "spectral" else _ENDS[name](m)
            return (radii.get(name, 1.0) * end).astype(u.dtype)

        out = jax.tree.map(end, names, sums, polar, updates)
        stored = jax.tree.map(lambda s, m: s.astype(m.dtype), sums, state.momentum)
        return out, ScaleByScionState(
            jnp.asarray(optax.safe_increment(state.count)), stored
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _spectral(o: jax.Array) -> jax.Array:
    return o * (o.shape[2] / o.shape[1]) ** 0.5 if o.size else o


def _checked(tree: Any, norms: Any) -> Any:
    """Returns the norm of each leaf, after a look at names and axes."""

    def check(path: Any, leaf: Any, name: str) -> str:
        least = {"spectral": 2, "sign": 2, "row": 2, "rms": 0}.get(name)
        if least is None or jnp.ndim(leaf) < least:
            raise ValueError(
                f"scale_by_scion: leaf {trees.path_string(path)!r} of shape"
                f" {jnp.shape(leaf)} has the norm {name!r}; there are 'rms' and, for"
                " two axes or more, 'spectral', 'sign' and 'row'"
            )
        return name

    names = norms(tree) if callable(norms) else norms
    return jax.tree_util.tree_map_with_path(check, tree, names)


def scion(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    constrained: bool = True,
    min_norm: float | jax.Array | None = None,
    norms: Any = scion_norms,
    radius: Mapping[str, float] | None = None,
    orthogonalize: Callable[[jax.Array], jax.Array] = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion: one rate for a whole model, each leaf measured in the norm of its role.

    Hidden matrices move in the spectral norm as with Muon, heads in the largest entry,
    vectors in the root mean square; there is no second optimizer. Constrained, this is
    a Frank-Wolfe method: weights stay in the ball of the radius, once they are inside
    and eta <= 1; unconstrained it is steepest descent.

        w_t = (1 - eta_t) w_{t-1} - eta_t u_t      constrained
        w_t = w_{t-1} - eta_t u_t                  unconstrained

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the momentum, in [0, 1); the authors' alpha is 1 - b1.
      constrained: Whether weights shrink by eta_t, as above.
      min_norm: As in `muon`, of matrices under `views`: 0 holds those with a gradient
        of zero, but for the shrinking.
      norms: As in `scale_by_scion`.
      radius: Radius by name of the norm; the authors train GPT with {'spectral': 50,
        'sign': 3000} and a rate near 2^-12.
      orthogonalize: Kernel for 'spectral'; on a mesh wrap it in `sharding.over_axis`.
      views: As in `scale_by_scion`.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_scion`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"bias": jnp.array([3.0, -4.0])}
      >>> tx = optimizers.scion(0.5)
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [f"{entry:.3f}" for entry in updates["bias"]]  # half way to the far end
      ['-1.924', '2.566']

    Source:
      T. Pethick et al., "Training deep learning models with norm-constrained LMOs",
      2025, arXiv:2502.07529, and the authors' code. Differs from the authors' code:
      float32 for bfloat16; nothing is added to norms; a convolution is scaled as its
      matrix, sqrt(n / (k k m)), where theirs divides by k k; a table (vocabulary,
      width) that is head and embedding at once has 'rms' (their `ColNorm`), and where
      they take 'sign' for it, give that with a radius that minds the axis.
    """
    core = scale_by_scion(
        b1=b1,
        norms=norms,
        radius=radius,
        orthogonalize=orthogonalize,
        views=views,
        accumulator_dtype=accumulator_dtype,
    )
    shrink = optax.add_decayed_weights(1.0) if constrained else optax.identity()
    rate = links.scale_by_learning_rate(learning_rate)
    held = links.hold_still(core, min_norm, views)
    return links.in_float32(optax.chain(held, shrink, rate))
