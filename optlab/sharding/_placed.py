"""Updates that keep the placement of the parameters."""

from typing import Any

import jax
import optax


def placed(
    inner: optax.GradientTransformation, shardings: Any
) -> optax.GradientTransformationExtraArgs:
    """Pins the updates of a transformation to the placement of the parameters.

    On a mesh with Auto axes placement cannot be seen while tracing, and after a step
    that moves matrices between devices the compiler is free to leave an update
    wherever it likes; parameters and state then wander. Saying the placement once
    settles it. With Explicit axes updates keep their placement without this.

    Args:
      inner: The transformation.
      shardings: Tree of `jax.sharding.Sharding` like the parameters; for parameters p,
        `jax.tree.map(lambda x: x.sharding, p)`.

    Returns:
      The transformation with the same state.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import sharding
      >>> params = {"w": jnp.ones((4, 4))}
      >>> shardings = jax.tree.map(lambda x: x.sharding, params)
      >>> tx = sharding.placed(optax.sgd(0.5), shardings)
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> print(updates["w"][0])
      [-0.5 -0.5 -0.5 -0.5]

    Source:
      Written for this library.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        updates, state = inner.update(updates, state, params, **extra_args)
        return jax.tree.map(jax.lax.with_sharding_constraint, updates, shardings), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
