"""SCALE: gradients with columns of one size, and momentum for the output head only."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees

NORMS = ("rms", "l2")
HEAD = r"(^|/)((lm_|output_|classifier_)?head|logits|classifier)(/|$)"

_EMBEDDING = re.compile(r"embed|(^|/)(wte|wpe|tokens?)(/|$)", re.IGNORECASE)
_WEIGHT = re.compile(r"(^|/)[^/]*(embedding|kernel|weight)$", re.IGNORECASE)


class ScaleByScaleState(NamedTuple):
    """State of `scale_by_scale`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: Mean gradient of the head, float32 or wider; `optax.MaskedNode` in the
        place of every other leaf.
    """

    count: jax.Array
    momentum: Any


def column_views(params: Any) -> Any:
    """Reads hidden matrices, embeddings and output heads as columns.

    As `trees.matrix_views`, and embeddings (vocabulary, features) and heads (features,
    vocabulary) are matrices on their two axes as well: a column is what one unit, one
    feature of the embedding or one word of the head takes in.

    Args:
      params: Tree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Tree with a `trees.MatrixView`, or None, at each leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"embed": {"embedding": jnp.ones((9, 4))},
      ...           "norm": {"scale": jnp.ones(4)}}
      >>> optimizers.column_views(params)["embed"]["embedding"].reduction
      (0,)

    Source:
      Written for this library.
    """

    def view(path: tuple[Any, ...], leaf: Any, found: Any) -> Any:
        name = trees.path_string(path)
        known = _EMBEDDING.search(name) or re.search(HEAD, name, re.IGNORECASE)
        if found is None and jnp.ndim(leaf) == 2 and known and _WEIGHT.search(name):
            return trees.MatrixView((0,), (1,))
        return found

    return jax.tree_util.tree_map_with_path(view, params, trees.matrix_views(params))


def scale_by_scale(
    *,
    b1: float | jax.Array = 0.9,
    norm: str = "rms",
    eps: float | jax.Array = 1e-8,
    head: str = HEAD,
    views: Any = column_views,
) -> optax.GradientTransformationExtraArgs:
    """Divides every column of a gradient by its size; averages the head's before.

    A column holds what one output unit takes in: the norm runs over the fan-in, axis 0
    of a Flax kernel (in, out), of an embedding and of a head alike. With m the gradient
    itself, or for the head its average,

        m_t = b1 m_{t-1} + (1 - b1) g_t             the head alone
        u_ij = m_ij / max(sqrt(mean_i m_ij^2), eps)

    Args:
      b1: Decay of the head's momentum, in [0, 1); there is no bias correction.
      norm: 'rms' as above (the authors' code), or 'l2', the sum in place of the mean,
        which is how 'column normalised' may be read: sqrt(fan-in) times smaller.
      eps: Smallest size that is divided by, in units of the gradient; a column below
        it shrinks.
      head: Regular expression, searched in paths, of the leaves with momentum. Name a
        tied embedding here to treat it as the head.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.

    Returns:
      A transformation without learning rate and sign. A zero column stays zero.

    Raises:
      ValueError: If norm is unknown or a leaf is no matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_scale()
      >>> g = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [f"{entry:.4f}" for entry in updates["kernel"].ravel()]  # columns of RMS 1
      ['0.8485', '0.0000', '1.1314', '1.4142']

    Source:
      See `scale`.
    """
    if norm not in NORMS:
        raise ValueError(f"scale_by_scale: norm must be one of {NORMS}, got {norm!r}")

    def init(params: optax.Params) -> ScaleByScaleState:
        trees.leaf_views("scale_by_scale", params, views)

        def memory(path: tuple[Any, ...], p: Any) -> Any:
            if re.search(head, trees.path_string(path), re.IGNORECASE):
                return jnp.zeros_like(p)
            return optax.MaskedNode()

        momentum = jax.tree_util.tree_map_with_path(memory, links.widen(params))
        return ScaleByScaleState(jnp.zeros((), jnp.int32), momentum)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByScaleState]:
        del params, extra_args
        found = trees.leaf_views("scale_by_scale", updates, views)
        leaves, tree = jax.tree.flatten(updates)
        memories, out = [], []
        for g, view, m in zip(
            leaves, found, tree.flatten_up_to(state.momentum), strict=True
        ):
            wide = links.widen(g)
            if not isinstance(m, optax.MaskedNode):
                wide = m = (b1 * m + (1 - b1) * wide).astype(m.dtype)
            memories.append(m)
            columns = _normalized(wide, view.reduction, norm, eps)
            out.append(columns.astype(g.dtype))
        count = jnp.asarray(optax.safe_increment(state.count))
        return tree.unflatten(out), ScaleByScaleState(count, tree.unflatten(memories))

    return optax.GradientTransformationExtraArgs(init, update)


def _normalized(
    g: jax.Array, axes: tuple[int, ...], norm: str, eps: float | jax.Array
) -> jax.Array:
    """Divides by the size over some axes."""
    if not g.size:
        return g
    # The largest entry is divided out first, or squares of 1e30 would overflow.
    largest = jnp.max(jnp.abs(g), axis=axes, keepdims=True)
    largest = jnp.where(largest == 0, 1.0, largest)
    reduce = jnp.mean if norm == "rms" else jnp.sum
    size = largest * jnp.sqrt(reduce((g / largest) ** 2, axis=axes, keepdims=True))
    return g / jnp.maximum(size, eps)


def scale(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.9,
    norm: str = "rms",
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    head: str = HEAD,
    views: Any = column_views,
) -> optax.GradientTransformationExtraArgs:
    """SCALE for the matrices of a model, and another optimizer for the rest.

    Between SGD and Adam: hidden matrices and embeddings have no state at all, the
    output head has one momentum. `views` says which leaves are meant: by default hidden
    matrices, embeddings and heads; norms, biases and scalars go to `rest`.

        u_t = columns of g_t (of the head: of m_t) divided by their root mean square
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    State: 4 bytes for each parameter of the head in float32, none elsewhere.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included; the
        authors use Adam. None is allowed only when every leaf has a view.
      b1: Decay of the head's momentum, in [0, 1).
      norm: 'rms' (the authors' code) or 'l2', see `scale_by_scale`.
      eps: Smallest size of a column that is divided by, in units of the gradient.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      head: Regular expression of the paths that have momentum.
      views: As in `scale_by_scale`.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_scale`; if `rest` is missing and a leaf needs it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"up": {"kernel": jnp.ones((4, 4))},
      ...           "head": {"kernel": jnp.ones((4, 9))}}
      >>> state = optimizers.scale(0.1).init(params)
      >>> [x.shape for x in jax.tree.leaves(state) if x.ndim]  # the head alone
      [(4, 9)]

    Source:
      Glentis et al., "A minimalist optimizer design for LLM pretraining", 2025,
      arXiv:2506.16659, and the authors' code, which divides by the root mean square.
      Differs from the authors' code: columns are normalised in float32 (theirs: in the
      gradient's dtype); a kernel with more than two axes is read as its matrix (theirs
      takes two axes only). UNVERIFIED: the paper itself, said to divide by the
      Euclidean norm; it has no rule for tied embeddings that we know of.
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_scale(b1=b1, norm=norm, eps=eps, head=head, views=views)
        return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)

    return links.matrices_and_rest(matrices, rest, views)
