"""MKOR: Kronecker factors whose inverses are updated by one outer product each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees

STABILIZERS = ("reset", "blend")


class ScaleByMkorState(NamedTuple):
    """State of `scale_by_mkor`; one entry for each shape (m, n) of a layer's matrix.

    Attributes:
      count: Updates applied so far, shape (), int32.
      input_inverses: Inverse factors of the inputs, shapes (K, m, m). A single zero
        where there are no layers.
      output_inverses: Inverse factors of the gradients at the outputs, (K, n, n).
      unstable: Which layers have a factor that has grown too large, shapes (K,).
    """

    count: jax.Array
    input_inverses: Any
    output_inverses: Any
    unstable: Any


def scale_by_mkor(
    *,
    decay: float | jax.Array = 0.95,
    every: int = 10,
    warmup_steps: int = 0,
    rule: str = "code",
    stabilizer: str = "reset",
    largest: float | jax.Array = 2.0,
    blend: float | jax.Array = 0.1,
    clip: float | jax.Array = 100.0,
    rescale: bool = True,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each layer's gradient by two inverses that see only mean vectors.

    A layer is a kernel with its bias as one more row, G of shape (m, n); a is the mean
    of its input (1 for the bias) and g the mean over N samples of N times the gradient
    at its output. Each `every` steps

        A^-1 <- rank-one update with a,   B^-1 <- rank-one update with g
        D = A^-1 G B^-1
        u = D (|G_kernel| + |G_bias|) / (|D_kernel| + |D_bias|)

    The rank-one update is `kernels.rank_one_inverse`. The first refresh only sets the
    identity. All leaves that belong to no layer pass through as they are.

    Updates need `layer_stats`: a dict from the path of each layer, such as 'mlp/up', to
    (a, g) without the 1 of the bias, or `trees.LayerStats`. `optlab.lab.capture` makes
    it for Flax models.

    Args:
      decay: Decay of the factors, in (0, 1).
      every: Steps from one refresh to the next.
      warmup_steps: Steps at the start that are all refreshed.
      rule: 'code', 'exact' or 'paper', see `kernels.rank_one_inverse`.
      stabilizer: What is done when an entry of a factor exceeds `largest`. 'reset': the
        identity takes the place of both factors of the layer at the next refresh, as in
        the authors' code; 'blend': F <- (1 - blend) F + blend I at once, for this
        factor alone, as in their paper.
      largest: Largest allowed entry of a factor.
      blend: Share of the identity.
      clip: Largest entry of the vectors a and g.
      rescale: Whether u gets the norm of the gradient, as above; else u = D.
      views: Tree of `trees.MatrixView` or the function that finds it; None where a leaf
        shall pass through.

    Returns:
      A transformation without learning rate and sign; a zero gradient gives a zero
      update. On a mesh every device holds all factors and whole gradients.

    Raises:
      ValueError: If an argument is unknown; as `trees.layer_statistics`.
      TypeError: If `layer_stats` is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> g = {"up": {"kernel": jnp.array([[3.0], [4.0]])}}
      >>> tx = optimizers.scale_by_mkor(every=1)
      >>> state, stats = tx.init(g), {"up": (jnp.array([1.0, 0.0]), jnp.zeros(1))}
      >>> for _ in range(2):
      ...     u, state = tx.update(g, state, layer_stats=stats)
      ...     print(u["up"]["kernel"].ravel().round(2))
      [3. 4.]
      [1.76 4.68]

    Source:
      See `mkor`.
    """
    _check(rule, stabilizer, every)

    def init(params: optax.Params) -> ScaleByMkorState:
        return _initial(params, trees.layer_groups(params, views))

    def refreshed(factors: Any, vectors: Any) -> Any:
        """One refresh of a group: (A^-1, B^-1, unstable), (a, g)."""
        *inverses, unstable = factors
        new = []
        for inverse, vector in zip(inverses, vectors, strict=True):
            vector = jnp.clip(vector.astype(inverse.dtype), -clip, clip)
            moved = kernels.rank_one_inverse(inverse, vector, decay, rule)
            if stabilizer == "blend":
                moved = _blended(moved, largest, blend)
            moved = jnp.where(unstable[:, None, None], _identity(inverse), moved)
            new.append(moved.astype(inverse.dtype))
        grown = jnp.zeros_like(unstable)
        if stabilizer == "reset":
            grown = (_largest(new[0]) > largest) | (_largest(new[1]) > largest)
        return *new, grown

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        layer_stats: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMkorState]:
        del params, extra_args
        count = jnp.asarray(optax.safe_increment(state.count))
        wide = links.widen(updates)
        groups = trees.layer_groups(wide, views)
        if not groups:
            return updates, state._replace(count=count)
        vectors = trees.layer_statistics(
            "scale_by_mkor", layer_stats, groups, moments=1
        )
        factors = list(zip(*state[1:], strict=True))
        due = (state.count % every == 0) | (state.count < warmup_steps)
        factors = jax.lax.cond(
            due,
            lambda factors: list(map(refreshed, factors, vectors)),
            lambda factors: factors,
            factors,
        )
        # On Auto axes the compiler would cut them as it likes.
        factors = trees.gathered(factors)
        stacks, restore = trees.layer_stacks(wide, groups)
        directions = [
            _direction(stack, a, b, _bias_rows(group), rescale)
            for stack, (a, b, _), group in zip(stacks, factors, groups, strict=True)
        ]
        out = jax.tree.map(lambda o, u: o.astype(u.dtype), restore(directions), updates)
        return out, ScaleByMkorState(count, *zip(*factors, strict=True))

    return optax.GradientTransformationExtraArgs(init, update)


def _check(rule: str, stabilizer: str, every: int) -> None:
    if rule not in kernels.RANK_ONE_RULES:
        raise ValueError(
            f"scale_by_mkor: rule must be one of {kernels.RANK_ONE_RULES}, got {rule!r}"
        )
    if stabilizer not in STABILIZERS:
        raise ValueError(
            f"scale_by_mkor: stabilizer must be one of {STABILIZERS}, got"
            f" {stabilizer!r}"
        )
    if int(every) != every or every < 1:
        raise ValueError(f"scale_by_mkor: every must be at least 1, got {every}")


def _initial(params: optax.Params, groups: Any) -> ScaleByMkorState:
    count = jnp.zeros((), jnp.int32)
    if not groups:
        return ScaleByMkorState(count, *(jnp.zeros(()) for _ in range(3)))
    dtypes = (leaf.dtype for leaf in jax.tree.leaves(params))
    dtype = jnp.result_type(jnp.float32, *dtypes)
    counts = [sum(layer.shape[0] for layer in group) for group in groups]

    def identities(axis: int) -> tuple[jax.Array, ...]:
        sizes = [group[0].shape[axis] for group in groups]
        return tuple(
            _identity(jnp.zeros((k, size, size), dtype))
            for k, size in zip(counts, sizes, strict=True)
        )

    # The first refresh forgets its vectors, as after a reset.
    unstable = tuple(jnp.ones(k, bool) for k in counts)
    return ScaleByMkorState(count, identities(1), identities(2), unstable)


def _identity(like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like) + jnp.eye(like.shape[-1], dtype=like.dtype)


def _blended(x: jax.Array, largest: Any, blend: Any) -> jax.Array:
    """Pulls the matrices with a large entry towards the identity."""
    mixed = (1 - blend) * x + blend * _identity(x)
    return jnp.where((_largest(x) > largest)[:, None, None], mixed, x)


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), axis=(-2, -1))


def _bias_rows(group: Any) -> jax.Array:
    """Which rows of the matrices of a group are biases, shape (K, m)."""
    flags = [layer.bias is not None for layer in group for _ in range(layer.shape[0])]
    last = jnp.arange(group[0].shape[1]) == group[0].shape[1] - 1
    return jnp.asarray(flags)[:, None] & last


def _direction(stack, input_inverse, output_inverse, biased, rescale):
    """Multiplies matrices by both inverses and gives them back their norms."""
    # Divided by their largest entry, so that squares stay in the range of floats.
    scale = jnp.max(jnp.abs(stack), axis=(-2, -1), keepdims=True)
    unit = stack / jnp.where(scale == 0, 1, scale)
    direction = jnp.einsum(
        "kij,kjl,klm->kim", input_inverse, unit, output_inverse, precision="highest"
    )
    if not rescale:
        return scale * direction

    def norm(x: jax.Array) -> jax.Array:
        rows = jnp.sum(x * x, axis=-1)
        # The sum of two norms, as the authors' code has it, not the norm of both.
        kernel, bias = (jnp.where(mask, rows, 0).sum(-1) for mask in (~biased, biased))
        return (jnp.sqrt(kernel) + jnp.sqrt(bias))[:, None, None]

    before, after = norm(unit), norm(direction)
    ratio = jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1)
    return scale * ratio * direction


def mkor(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float | jax.Array | None = 0.9,
    decay: float | jax.Array = 0.95,
    every: int = 10,
    warmup_steps: int = 0,
    rule: str = "code",
    stabilizer: str = "reset",
    largest: float | jax.Array = 2.0,
    blend: float | jax.Array = 0.1,
    clip: float | jax.Array = 100.0,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """MKOR: SGD with momentum behind inverse Kronecker factors of rank-one updates.

    The direction u_t is that of `scale_by_mkor`; another inner optimizer is
    `optax.chain(scale_by_mkor(), ...)`.

        v_t = momentum v_{t-1} + u_t
        w_t = w_{t-1} - eta_t (v_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      momentum: Decay of the sum of directions, in [0, 1); None keeps none.
      decay: Decay of the factors, in (0, 1).
      every: Steps from one refresh of the factors to the next.
      warmup_steps: Steps at the start that are all refreshed.
      rule: 'code', 'exact' or 'paper', see `kernels.rank_one_inverse`.
      stabilizer: 'reset' or 'blend', see `scale_by_mkor`.
      largest: Largest allowed entry of a factor.
      blend: Share of the identity.
      clip: Largest entry of the mean vectors.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      views: As for `scale_by_mkor`.

    Returns:
      A transformation; updates take `layer_stats`.

    Raises:
      ValueError: As `scale_by_mkor`.
      TypeError: As `scale_by_mkor`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> p = {"up": {"kernel": jnp.array([[3.0], [4.0]])}}
      >>> tx, stats = optimizers.mkor(0.1), {"up": (jnp.ones(2), jnp.ones(1))}
      >>> u, _ = tx.update(p, tx.init(p), p, layer_stats=stats)
      >>> print(u["up"]["kernel"].ravel())  # the first refresh sets the identity
      [-0.3 -0.4]

    Source:
      Mozaffari, Li, Zhang, Dehnavi, "MKOR: momentum-enabled Kronecker-factor-based
      optimizer using rank-1 updates", 2023, arXiv:2306.01685. Defaults follow the
      authors' code, in which the constants of the update are fixed, stat_decay and
      stabilization_factor are not used, and factors are float16. Differs from it:
      float32 factors, means are clipped instead of the samples, decay is decoupled.
      UNVERIFIED: `rule='paper'` and `stabilizer='blend'` are from memory of the paper.
    """
    core = scale_by_mkor(
        decay=decay,
        every=every,
        warmup_steps=warmup_steps,
        rule=rule,
        stabilizer=stabilizer,
        largest=largest,
        blend=blend,
        clip=clip,
        views=views,
    )
    if momentum is not None:
        core = optax.chain(core, optax.trace(momentum))
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
