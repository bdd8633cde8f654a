"""SGD-SaI: momentum SGD with a rate for each leaf, set once by its first gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import links

# Entries whose spread is below this part of the largest are equal up to rounding.
FLAT = 1e-6


class ScaleBySgdSaiState(NamedTuple):
    """State of `scale_by_sgd_sai`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      ratio: Signal-to-noise ratio G of each leaf, shape (), float32 or wider; 0 until
        it is known.
      mean: Mean gradient, shaped like the parameters, float32 or wider.
    """

    count: jax.Array
    ratio: Any
    mean: Any


def scale_by_sgd_sai(
    *,
    b1: float | jax.Array = 0.9,
    eps: float | jax.Array = 1e-8,
    safe: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Scales the mean gradient of each leaf by how its first gradient stood out.

    With g_1 the first gradient of a leaf of d entries that is not zero,

        G = ||g_1|| / (std(g_1) + eps),   std with d - 1 in the divisor
        m_1 = g_1,   m_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = G m_t

    G is never below sqrt(d - 1), and near it where the mean of g_1 is near zero: leaves
    get rates that grow as the root of their size. A stack of layers is one leaf and has
    one G.

    Args:
      b1: Decay of the mean, in [0, 1).
      eps: Added to the deviation, in units of the gradient.
      safe: Whether a leaf without a deviation, of one entry or of equal ones, has
        G = sqrt(d), and a leaf waits for a first gradient that is finite and not zero.
        False is the authors' code: there such a leaf has G = ||g_1|| / eps, which may
        well be 1e8, and one whose very first gradient is zero has G = 0 for ever.

    Returns:
      A transformation without learning rate and sign. Give it the mean gradient of all
      devices and of all parts of a batch: G is made of one gradient.

    Raises:
      ValueError: If the decay is outside [0, 1) or eps is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_sgd_sai()
      >>> g = {"kernel": jnp.array([3.0, -4.0, 1.0]), "scale": jnp.array(2.0)}
      >>> _, state = tx.update(g, tx.init(g))
      >>> {name: f"{ratio:.4f}" for name, ratio in state.ratio.items()}
      {'kernel': '1.4142', 'scale': '1.0000'}

    Source:
      See `sgd_sai`.
    """
    who = "scale_by_sgd_sai"
    links.require_decays(who, b1=b1)
    links.require_nonnegative(who, eps=eps)

    def init(params: optax.Params) -> ScaleBySgdSaiState:
        wide = links.widen(params)
        ratio = jax.tree.map(lambda p: jnp.zeros((), p.dtype), wide)
        zeros = optax.tree.zeros_like(wide)
        return ScaleBySgdSaiState(jnp.zeros((), jnp.int32), ratio, zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySgdSaiState]:
        del params, extra_args

        def begins(ratio: jax.Array) -> jax.Array:
            return ratio == 0 if safe else state.count == 0

        def measured(ratios: Any) -> Any:
            leaves, structure = jax.tree.flatten(links.widen(updates))
            new = structure.unflatten(_signal_to_noise(leaves, eps, safe))
            return jax.tree.map(
                lambda old, new: jnp.where(begins(old), new, old).astype(old.dtype),
                ratios,
                new,
            )

        # The gradient is read a second time only while a leaf has no ratio.
        due = [
            begins(old)
            for old, g in zip(
                *map(jax.tree.leaves, (state.ratio, updates)), strict=True
            )
            if g.size
        ]
        ratios = state.ratio
        if due:
            due = jnp.any(jnp.stack(due))
            ratios = jax.lax.cond(due, measured, lambda old: old, ratios)

        def rule(g: jax.Array, m: Any, old: Any, new: Any) -> Any:
            m = jnp.where(begins(old), g, b1 * m + (1 - b1) * g)
            return new * m, m, new, new

        out, mean, ratio, _ = links.each_leaf(
            rule, updates, state.mean, state.ratio, ratios
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, ScaleBySgdSaiState(count, ratio, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def _signal_to_noise(gradients: list[jax.Array], eps: Any, safe: bool) -> Any:
    """G of each gradient; the largest entries are divided out, or 1e30 overflows.

    Every sum is taken of all leaves before the next begins, so that on a mesh all of
    them travel together.
    """
    sizes = np.array([g.size for g in gradients])
    largest = jnp.stack([jnp.max(jnp.abs(g), initial=0.0) for g in gradients])
    unit = jnp.where(largest == 0, 1, largest)
    leaves = [g / unit[i] for i, g in enumerate(gradients)]
    sums = jnp.stack([jnp.stack([jnp.sum(x), jnp.sum(x * x)]) for x in leaves])
    means = sums[:, 0] / np.maximum(sizes, 1)
    moments = jnp.stack([jnp.sum((x - means[i]) ** 2) for i, x in enumerate(leaves)])
    spread = jnp.sqrt(moments / np.maximum(sizes - 1, 1))
    ratio = jnp.sqrt(sums[:, 1]) / (spread + eps / unit)
    if safe:
        ratio = jnp.where(spread <= FLAT, sizes**0.5, ratio)
        ratio = jnp.where(jnp.isfinite(largest), ratio, 0)
    return list(jnp.where(largest == 0, 0, ratio))


def sgd_sai(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    eps: float | jax.Array = 1e-8,
    safe: bool = True,
    weight_decay: float | jax.Array = 1e-2,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD-SaI: SGD with momentum, and learning rates scaled at initialisation.

    The update u_t = G m_t is that of `scale_by_sgd_sai`, then

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    State in float32: 4 bytes a parameter, half of AdamW's, and 4 a leaf.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule. A leaf of d
        entries moves about sqrt(d) times as far as with SGD.
      b1: Decay of the mean, in [0, 1).
      eps: Added to the deviation, in units of the gradient.
      safe: Whether leaves of one entry, of equal gradients, and without a gradient at
        first, are treated as such, see `scale_by_sgd_sai`.
      weight_decay: Decoupled decay, multiplied by the learning rate, not by G.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; the mean is float32 or wider, updates keep their dtype.

    Raises:
      ValueError: As `scale_by_sgd_sai`; if weight_decay is negative, or an update comes
        without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.sgd_sai(0.1, weight_decay=0.0)
      >>> g = jnp.array([3.0, -4.0, 1.0])  # G = sqrt(2): its mean is zero
      >>> updates, _ = tx.update(g, tx.init(g), g)
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.4243', '0.5657', '-0.1414']

    Source:
      Xu et al., "No more Adam: learning rate scaling at initialization is all you
      need", 2024, arXiv:2412.11768, and the authors' package 1.0.3. Differs from that
      code: `safe`; on several devices G is that of the mean gradient (theirs: each
      device has its own); b1 = 0 is plain SGD (theirs fails). UNVERIFIED: the paper
      itself, said to have G = ||g|| / sqrt(var(g) + eps).
    """
    links.require_nonnegative("sgd_sai", weight_decay=weight_decay)
    core = scale_by_sgd_sai(b1=b1, eps=eps, safe=safe)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
