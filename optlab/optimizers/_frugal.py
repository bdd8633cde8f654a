"""FRUGAL: Adam on a part of each matrix, signs of the gradient on the remainder."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _frugal_parts, _subspace
from optlab.optimizers._frugal_parts import Choose
from optlab.optimizers._subspace import Basis

LINES = ("fan_in", "fan_out", "randperm", "entries")
DIRECTIONS = ("svd", "random")
PROJECTIONS = (*LINES, *DIRECTIONS, "tensors")
STATE_FREE = ("sign_sgd", "sgd", "no")


class ScaleByFrugalState(NamedTuple):
    """State of `scale_by_frugal`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      key: Random key of the choices to come, shape ().
      chosen: For each matrix shape the chosen rows, columns or entries, (k, a) int32,
        or a pair of bases as in `ScaleByGaloreState`; or the chosen matrices, (a,).
      inner: State of the inner transformation on the chosen part.
    """

    count: jax.Array
    key: jax.Array
    chosen: Any
    inner: Any


def draw_lines(key: jax.Array, x: jax.Array, amount: int) -> jax.Array:
    """Draws distinct lines of every matrix, each choice as likely as any other.

    Args:
      key: Random key.
      x: Stack of gradients, shape (k, lines, width); its values do not matter.
      amount: Number a of lines.

    Returns:
      Indices, shape (k, a), int32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> optimizers.draw_lines(jax.random.key(0), jnp.ones((3, 8, 2)), 4).shape
      (3, 4)

    Source:
      Written for this library.
    """

    def draw(index: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, index), x.shape[1])

    return jax.vmap(draw)(jnp.arange(x.shape[0]))[:, :amount].astype(jnp.int32)


def scale_by_frugal(
    *,
    projection: str = "fan_in",
    density: float = 0.25,
    every: int = 200,
    inner: optax.GradientTransformation | None = None,
    state_free: str = "sign_sgd",
    state_free_scale: float | jax.Array = 1.0,
    reset: bool = True,
    key: jax.Array | None = None,
    choose: Choose = draw_lines,
    basis: Basis = kernels.singular_basis,
    side: str = "short",
    order: str = "random",
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """Gives a part of every matrix to an optimizer with state, the rest to one without.

    Every `every` updates, from the first on, the part is chosen anew; the state of the
    inner optimizer then starts from nothing. With D the projection to the part,

        r_t = D g_t
        u_t = D^T inner(r_t) + state_free_scale sign(g_t - D^T r_t)

    Args:
      projection: The part: random rows of (fan-in, fan-out), 'fan_in' (called columns
        by the authors, whose matrices are (out, in); their default); 'fan_out', random
        columns; 'randperm', random lines of `side`; 'entries', random single entries
        (their randk); 'svd', singular directions of `side`; 'random', random
        orthonormal directions of `side`; 'tensors', whole matrices (their blocks).
      density: Share of the part, from 0 to 1. Of lines and entries int(density size)
        are taken, of directions round(density min(m, n)), and round(density k) of k
        matrices, whatever their sizes.
      every: Updates from one choice to the next.
      inner: Transformation of the part, without rate and without use of parameters,
        such as `optax.scale_by_lion()`; None means `optax.scale_by_adam()`.
      state_free: What is done with the remainder: 'sign_sgd' as above, 'sgd', the
        remainder itself, or 'no', nothing.
      state_free_scale: Factor on the step along the remainder.
      reset: Whether the inner state starts anew with each choice.
      key: Random key of the choices; None means `jax.random.key(0)`.
      choose: Function of key, stack (k, lines, width) and amount that gives distinct
        lines (k, amount), where the projection is one of lines or entries. For
        'tensors' the stack is one matrix that has a line for each of theirs, its norm.
      basis: Kernel that finds the directions of 'svd', see `scale_by_galore`.
      side: Side of 'randperm', 'svd' and 'random': 'short' (the authors' default; of a
        square matrix the fan-in), 'long', 'in', 'out', and for directions 'both'.
      order: How 'tensors' are chosen: 'random' (the authors' default); 'ascending' and
        'descending', in turn from the first or the last leaf on; 'mirror', in turn from
        both ends, as many of each.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.

    Returns:
      A transformation without learning rate and sign. Where lines, entries or tensors
      are chosen, the remainder is exactly zero on them; with directions it is dense.

    Raises:
      ValueError: If projection, state_free, side or order is unknown, density is
        outside [0, 1], every is below 1, or a leaf is no matrix; if reset is False for
        'tensors', where one matrix would get the moments of another, or 'mirror' comes
        to an odd number of matrices.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_frugal(density=0.5, state_free="no")
      >>> g = {"kernel": jnp.full((4, 2), 3.0)}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> int((updates["kernel"] != 0).sum())
      4

    Source:
      See `frugal`.
    """
    who = "scale_by_frugal"
    _subspace.require_known(who, "projection", projection, PROJECTIONS)
    _subspace.require_known(who, "state_free", state_free, STATE_FREE)
    _subspace.require_positive(who, every=every)
    if projection == "tensors" and not reset:
        raise ValueError(
            f"{who}: reset=False would leave the moments of one matrix to another; with"
            " projection='tensors' the state starts anew with each choice, reset=True"
        )
    method = inner or optax.scale_by_adam()
    parts = _parts(who, projection, density, choose, basis, side, order)

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        start = jax.random.key(0) if key is None else key
        chosen = parts.empty(shapes)
        # A new key: the state must not alias the caller's.
        return jax.random.fold_in(start, 0), chosen, _first(method, parts, shapes)

    def without_state(remainder: jax.Array) -> jax.Array:
        free = jnp.sign(remainder) if state_free == "sign_sgd" else remainder
        return jnp.zeros_like(free) if state_free == "no" else state_free_scale * free

    def update(
        stacks: list[jax.Array], state: Any, places: list[jax.Array]
    ) -> tuple[Any, ...]:
        del places

        def refresh() -> tuple[Any, ...]:
            following, now = jax.random.split(state.key)
            chosen = parts.new(now, stacks, state.chosen, state.count // every)
            state_of_part = state.inner
            if reset:
                start = _first(method, parts, stacks)
                state_of_part = jax.tree.map(
                    lambda new, old: new.astype(old.dtype), start, state.inner
                )
            return following, chosen, state_of_part

        key_, chosen, inner_state = jax.lax.cond(
            state.count % every == 0,
            refresh,
            lambda: (state.key, state.chosen, state.inner),
        )
        low = parts.down(stacks, chosen)
        steps: Any
        steps, inner_state = method.update(low, inner_state)
        remainder = parts.remainder(stacks, low, chosen)
        free = [without_state(x) for x in remainder]
        out = parts.combine(free, steps, chosen)
        return out, (key_, chosen, inner_state)

    return links.on_stacks(
        who,
        ScaleByFrugalState,
        init,
        update,
        views=views,
        joined=projection != "tensors",  # which have the order of the leaves
    )


def _parts(
    who: str,
    projection: str,
    density: float,
    choose: Choose,
    basis: Basis,
    side: str,
    order: str,
) -> Any:
    """Makes what chooses the parts, or refuses its arguments."""
    known = _subspace.SIDES if projection in DIRECTIONS else _subspace.SIDES[:-1]
    _subspace.require_known(who, "side", side, known)
    _subspace.require_known(who, "order", order, _frugal_parts.ORDERS)
    if not 0 <= density <= 1:
        raise ValueError(f"{who}: density must be from 0 to 1, got {density!r}")
    if projection == "tensors":
        return _frugal_parts.Tensors(who, density, order, choose)
    if projection in LINES:
        part = _frugal_parts.Lines(projection, density, side, choose)
    else:
        part = _frugal_parts.Directions(projection, density, side, basis)
    return _frugal_parts.ByStack(part)


def _first(method: Any, parts: Any, shapes: list[Any]) -> Any:
    """Makes the first state of the inner transformation."""
    lows = jax.eval_shape(lambda xs: parts.down(xs, parts.empty(xs)), list(shapes))
    return method.init(optax.tree.zeros_like(lows))


def frugal(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    projection: str = "fan_in",
    density: float = 0.25,
    every: int = 200,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    inner: optax.GradientTransformation | None = None,
    state_free: str = "sign_sgd",
    state_free_scale: float | jax.Array = 1.0,
    reset: bool = True,
    key: jax.Array | None = None,
    choose: Choose = draw_lines,
    basis: Basis = kernels.singular_basis,
    side: str = "short",
    order: str = "random",
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """FRUGAL for the matrices of a model and another optimizer for the rest.

    Every entry of a matrix moves in every step: a changing part of them by Adam, the
    others by the sign of their gradient. The update u_t is that of `scale_by_frugal`.

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    State in float32: 8 density bytes for each parameter of a matrix, two in the place
    of Adam's eight; 'entries' have 4 density more for their indices, directions their
    bases. Arrays cannot grow while a program runs, so that 'tensors' need 8 bytes for
    each parameter of the largest choice that may come: in turn, of the largest block;
    at random, of as many matrices as are chosen, the largest of all. With matrices of
    one size that is 8 density too; where a few are much larger than the others, up to
    8. On a mesh the state lies whole on every device, which sees whole matrices.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      projection: The part that has state, see `scale_by_frugal`.
      density: Share of that part, from 0 (SGD of signs) to 1 (Adam).
      every: Updates from one choice to the next.
      b1: Decay of Adam's mean, in [0, 1).
      b2: Decay of Adam's mean square, in [0, 1).
      eps: Added to Adam's root, in units of the gradient.
      inner: Transformation in the place of Adam, such as `optax.scale_by_lion()`.
      state_free: 'sign_sgd', 'sgd' or 'no', see `scale_by_frugal`.
      state_free_scale: Factor on the step along the remainder; the authors take 1 to
        train and 0.1 to fine-tune.
      reset: Whether Adam starts anew with each choice.
      key: Random key of the choices; None means `jax.random.key(0)`. Give the same one
        on every host.
      choose: Chooses lines or entries, see `scale_by_frugal`.
      basis: Kernel that finds the directions of 'svd'.
      side: Side of 'randperm', 'svd' and 'random'.
      order: How 'tensors' are chosen, see `scale_by_frugal`.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_frugal`; if `rest` is missing and a leaf needs it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"up": {"kernel": jnp.ones((64, 256))}}
      >>> state = optimizers.frugal(0.001).init(params)
      >>> sum(x.size for x in jax.tree.leaves(state) if x.ndim > 2)  # of 2 x 16384
      8192

    Source:
      Zmushko et al., "FRUGAL", 2024, arXiv:2411.07837, and the authors' code, whose
      numbers the tests hold for each projection. Differs from the authors' code: other
      random numbers; each matrix of a stack counts as a tensor, in the order of leaves.
      UNVERIFIED: the paper itself, and its numbers.
    """
    method = optax.scale_by_adam(b1, b2, eps) if inner is None else inner

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_frugal(
            projection=projection,
            density=density,
            every=every,
            inner=method,
            state_free=state_free,
            state_free_scale=state_free_scale,
            reset=reset,
            key=key,
            choose=choose,
            basis=basis,
            side=side,
            order=order,
            views=views,
        )
        return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)

    return links.matrices_and_rest(matrices, rest, views)
