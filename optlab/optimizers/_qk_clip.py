"""QK-clip: queries and keys are scaled down where attention logits grow too large."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import trees


def qk_clip(
    threshold: float | jax.Array = 100.0,
    *,
    query: str = "query|q|q_proj",
    key: str = "key|k|k_proj",
) -> optax.GradientTransformationExtraArgs:
    """Bounds attention logits by scaling the weights of queries and keys, head by head.

    The last link of a chain, behind decay and learning rate: it looks at the weights as
    they will be, W + u. With S_h the largest logit of head h, q . k / sqrt(head_dim),
    over all positions and the whole batch in the forward pass of this step,

        gamma_h = min(1, threshold / S_h)
        W_q, W_k <- sqrt(gamma_h) (W + u)        what leaves is the difference to W

    so the logits of a head that was at S_h are back at the threshold. Biases of
    queries and keys are scaled along. Where keys have fewer heads than queries (grouped
    or multi-query attention) a key serves several heads: then it stays as it is, and
    the query takes all of gamma_h. Heads below the threshold keep their update bit for
    bit.

    The extra argument `attn_max_logit` holds S: a tree, or a dictionary by path, with
    an array (heads,) for the module above each query and key, (layers, heads) if layers
    are scan-stacked, as in {"layers_0/attention": S}. Take the maximum over all devices
    that share the batch.

    Args:
      threshold: Largest logit that is left alone, positive.
      query: Regular expression for the name of the query projection.
      key: Regular expression for the name of the key projection. Their kernels have the
        shape (..., d, heads, head_dim), biases (..., heads, head_dim).

    Returns:
      A transformation without state that needs the parameters and `attn_max_logit`.
      A head whose S is infinite or undefined is left alone.

    Raises:
      TypeError: If `attn_max_logit` is missing.
      ValueError: If threshold is not above 0, the parameters are missing, an attention
        has no S or an S no attention, or the heads of a leaf do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> weights = {"kernel": jnp.ones((4, 2, 3))}  # (d, heads, head_dim)
      >>> params = {"attention": {"query": weights, "key": weights}}
      >>> updates = {"attention": {"query": {"kernel": jnp.zeros((4, 2, 3))},
      ...                          "key": {"kernel": jnp.zeros((4, 2, 3))}}}
      >>> tx = optimizers.qk_clip()
      >>> largest = {"attention": jnp.array([400.0, 50.0])}
      >>> new, _ = tx.update(updates, tx.init(params), params, attn_max_logit=largest)
      >>> print(new["attention"]["query"]["kernel"][0, :, 0])
      [-0.5  0. ]

    Source:
      Kimi Team, "Kimi K2: open agentic intelligence", 2025, arXiv:2507.20534.
      UNVERIFIED: read in descriptions of the report, not in the report or its code.
      Of its latent attention nothing is here; how grouped keys are treated is our own
      choice.
    """
    if isinstance(threshold, float | int) and not threshold > 0:
        raise ValueError(f"qk_clip: threshold must be above 0, got {threshold}")

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        attn_max_logit: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        if attn_max_logit is None:
            raise TypeError(
                "qk_clip: needs the extra argument attn_max_logit, the largest logit of"
                " each head: update(..., attn_max_logit={'path/of/attention': S})"
            )
        if params is None:
            raise ValueError("qk_clip: needs the parameters: update(..., params)")
        largest = {
            trees.path_string(path): s
            for path, s in jax.tree_util.tree_leaves_with_path(attn_max_logit)
        }
        roles = _roles(params, query, key)
        _require_all_served({module for module, _, _ in roles.values()}, set(largest))
        grouped = {
            module
            for module, side, shape in roles.values()
            if side == "key" and shape[-2] != largest[module].shape[-1]
        }

        def clip(path: Any, u: jax.Array, w: jax.Array) -> jax.Array:
            name = trees.path_string(path)
            module, side, _ = roles.get(name, (None, None, None))
            if module is None or (module in grouped and side == "key"):
                return u
            gamma = _gamma(largest[module], threshold)
            factor = _for_leaf(
                name, w.shape, gamma if module in grouped else jnp.sqrt(gamma)
            )
            moved = factor * (w.astype(factor.dtype) + u) - w
            return jnp.where(factor < 1, moved.astype(u.dtype), u)

        return jax.tree_util.tree_map_with_path(clip, updates, params), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def _roles(params: Any, query: str, key: str) -> dict[str, tuple[str, str, Any]]:
    """Returns, by path, a leaf's attention, side ('query', 'key') and shape."""
    roles = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = trees.path_string(path)
        module, _, rest = ("/" + name).rpartition("/")[0].rpartition("/")
        for side, pattern in (("query", query), ("key", key)):
            if re.fullmatch(pattern, rest):
                roles[name] = (module.removeprefix("/"), side, leaf.shape)
    return roles


def _require_all_served(modules: set[str], given: set[str]) -> None:
    if modules != given:
        raise ValueError(
            "qk_clip: attn_max_logit must have one array for each attention; missing"
            f" {sorted(modules - given)}, without queries and keys"
            f" {sorted(given - modules)}"
        )


def _gamma(s: jax.Array, threshold: float | jax.Array) -> jax.Array:
    """Returns the factor on the logits of each head, float32 or wider."""
    s = jnp.asarray(s, float)
    above = (s > threshold) & jnp.isfinite(s)
    return jnp.where(above, threshold / jnp.where(above, s, 1.0), 1.0)


def _for_leaf(name: str, shape: tuple[int, ...], factor: jax.Array) -> jax.Array:
    """Lines factors (..., heads) up with a kernel or a bias (..., heads, head_dim)."""
    *layers, heads = factor.shape
    between = len(shape) - len(layers) - 2
    if between < 0 or shape[: len(layers)] != (*layers,) or shape[-2] != heads:
        wanted = (*layers, "...", heads, "head_dim")
        raise ValueError(
            f"qk_clip: leaf {name!r} has shape {shape}; with {heads} heads it must be"
            f" {wanted}. Reshape the projection, or name another with query= and key="
        )
    return factor.reshape(*layers, *(1,) * between, heads, 1)
