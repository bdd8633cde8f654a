"""Products with the Hessian of a loss, and its diagonal by random signs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import trees

Loss = Callable[[Any], jax.Array]


class HessianEstimate(NamedTuple):
    """What one pass of `hutchinson` gives.

    Attributes:
      value: The loss, shape ().
      grads: Its gradient, shaped like the parameters.
      hessian_diag: Estimate of the diagonal of the Hessian, shaped like them too.
    """

    value: jax.Array
    grads: Any
    hessian_diag: Any


def hessian_vector_product(loss: Loss, params: Any, vector: Any) -> Any:
    """Multiplies a vector by the Hessian of a loss, without the Hessian.

        H v = d/de grad loss(params + e v) at e = 0

    Args:
      loss: From parameters to a number.
      params: Tree of arrays.
      vector: Tree like it.

    Returns:
      Tree like it. Costs two gradients, and about twice their memory.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> loss = lambda x: x[0] ** 2 + x[0] * x[1] + 1.5 * x[1] ** 2
      >>> print(estimators.hessian_vector_product(loss, jnp.ones(2), jnp.ones(2)))
      [3. 4.]

    Source:
      Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
    """
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def rademacher_like(key: jax.Array, params: Any) -> Any:
    """Draws a sign for each entry of a tree.

    Args:
      key: Random key; one key gives the same signs on every device and placement.
      params: Tree of arrays.

    Returns:
      Tree like it with entries 1 and -1, of its dtypes, placed like it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> signs = estimators.rademacher_like(jax.random.key(0), jnp.ones(5))
      >>> print(signs * signs)
      [1. 1. 1. 1. 1.]

    Source:
      Written for this library: draws do not depend on the placement.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))

    def draw(key: jax.Array, x: Any) -> jax.Array:
        signs = jax.random.rademacher(key, jnp.shape(x), jnp.int8).astype(x.dtype)
        sharding = jax.typeof(x).sharding
        # A tangent has the type of its parameter, placement on Explicit axes included.
        return jax.reshard(signs, sharding) if any(sharding.spec) else signs

    return tree.unflatten(
        draw(key, x) for key, x in zip(keys[: len(leaves)], leaves, strict=True)
    )


def hutchinson(loss: Loss, params: Any, key: jax.Array) -> HessianEstimate:
    """Estimates the diagonal of the Hessian, with loss and gradient on the way.

    For signs z the entries of z * (H z) have the diagonal of H as their mean. With a
    diagonal Hessian each draw gives it exactly.

        z ~ Rademacher,   D = z * (H z)

    Args:
      loss: From parameters to a number.
      params: Tree of arrays.
      key: Random key, a new one for each draw.

    Returns:
      Loss, gradient and diagonal. All three cost three gradients; a gradient and a
      product on their own cost four.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> loss = lambda x: jnp.sum(jnp.array([1.0, 10.0, 100.0]) * x**2) / 2
      >>> estimate = estimators.hutchinson(loss, jnp.ones(3), jax.random.key(0))
      >>> print(estimate.hessian_diag)
      [  1.  10. 100.]

    Source:
      Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", 2007.
    """
    signs = rademacher_like(key, params)
    (value, grads), (_, product) = jax.jvp(
        jax.value_and_grad(loss), (params,), (signs,)
    )
    return HessianEstimate(value, grads, jax.tree.map(jnp.multiply, signs, product))


def given_or_estimated_diagonal(
    who: str, updates: Any, params: Any, extra_args: Mapping[str, Any]
) -> Any:
    """Finds the diagonal of the Hessian for a transformation that needs it.

    That is the extra argument `hessian_diag` if there is one, else an estimate by
    `hutchinson` from `key` and `loss_fn` (or `value_fn`).

    Args:
      who: Name of the transformation, for errors.
      updates: Its updates; leaves of `hessian_diag` are matched to them by path, since
        inside `optax.masked` there are fewer updates than parameters.
      params: The parameters, for the estimate.
      extra_args: Extra arguments of the update.

    Returns:
      Tree like the updates.

    Raises:
      TypeError: If arguments are missing.
      ValueError: If `hessian_diag` has no leaf for an update, or a loss would have to
        be evaluated where some parameters are hidden.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> given = {"hessian_diag": {"a": jnp.ones(1), "b": jnp.zeros(1)}}
      >>> find = estimators.given_or_estimated_diagonal
      >>> find("adahessian", {"a": jnp.ones(1)}, None, given)
      {'a': Array([1.], dtype=float32)}

    Source:
      Written for this library.
    """
    given = extra_args.get("hessian_diag")
    if given is not None:
        return _matched(who, given, updates)
    loss, key = extra_args.get("loss_fn"), extra_args.get("key")
    loss = extra_args.get("value_fn") if loss is None else loss
    if loss is None or key is None or params is None:
        raise TypeError(
            f"{who}: an update needs the curvature: tx.update(grads, state, params,"
            " hessian_diag=tree) or tx.update(grads, state, params, loss_fn=loss,"
            " key=key), loss from parameters to the loss on this batch, key a new one"
            " each step"
        )
    if _hidden(params):
        raise ValueError(
            f"{who}: some parameters are hidden by optax.masked or optax.partition, so"
            " loss_fn cannot be evaluated here. Estimate outside:"
            " diagonal = estimators.hutchinson(loss_fn, params, key).hessian_diag,"
            " then tx.update(..., hessian_diag=diagonal)."
        )
    return hutchinson(loss, params, key).hessian_diag


def _matched(who: str, given: Any, updates: Any) -> Any:
    known = {
        trees.path_string(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(given)
    }

    def find(path: Any, update: Any) -> Any:
        name = trees.path_string(path)
        shape = jnp.shape(known[name]) if name in known else None
        if shape != jnp.shape(update):
            found = "no leaf" if shape is None else f"shape {shape}"
            raise ValueError(
                f"{who}: hessian_diag has {found} for {name!r} of shape"
                f" {jnp.shape(update)}; it is a tree like the parameters"
            )
        return known[name]

    return jax.tree_util.tree_map_with_path(find, updates)


def _hidden(params: Any) -> bool:
    def is_masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    return any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked)))
