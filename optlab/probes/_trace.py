"""The sum of all eigenvalues, and the curvature along one direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import links
from optlab.probes import _krylov


class TraceEstimate(NamedTuple):
    """What `trace` finds.

    Attributes:
      value: The estimate, shape ().
      standard_error: Its standard error, from how the draws scatter, shape ().
    """

    value: jax.Array
    standard_error: jax.Array


def trace(
    product: _krylov.Map, params: Any, key: jax.Array, *, draws: int = 16
) -> TraceEstimate:
    """Estimates the trace of a curvature by random signs.

        z^T A z,   z ~ Rademacher,   has the mean trace A and the variance
        2 (||A||_F^2 - ||diag A||^2)

    Of a Hessian it is the sum of the eigenvalues; noisy steps of a rate are stable
    only below about 2 / rate.

    Args:
      product: The symmetric map, such as `estimators.hessian_product`'s.
      params: Tree like its vectors; only shapes, dtypes and places count.
      key: Typed random key.
      draws: Number of products, 2 or more.

    Returns:
      The mean of the draws and its standard error; 0 of the latter for a diagonal map,
      where each draw is exact.

    Raises:
      ValueError: If draws is below 2.
      TypeError: If the key is not a typed one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators, probes
      >>> hessian = estimators.hessian_product(
      ...     lambda w: w[0] ** 2 / 2 + 5 * w[1] ** 2, jnp.ones(2))
      >>> found = probes.trace(hessian, jnp.ones(2), jax.random.key(0))
      >>> print(found.value, found.standard_error)
      11.0 0.0

    Source:
      Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
    """
    links.require_key("trace", key)
    if draws < 2:
        raise ValueError(
            f"trace: draws must be 2 or more, for a standard error, got {draws}"
        )
    wide = links.widen(params)

    def one(key: jax.Array) -> jax.Array:
        signs = _krylov.signs_like(key, wide)
        return _inner(signs, product(signs))

    keys = jax.random.split(key, draws)
    if _krylov.on_host(product):
        found = jnp.stack([one(keys[i]) for i in range(draws)])
    else:
        found = jax.lax.map(one, keys)
    return TraceEstimate(jnp.mean(found), jnp.std(found, ddof=1) / draws**0.5)


def directional_sharpness(product: _krylov.Map, direction: Any) -> jax.Array:
    """Measures the curvature along a direction, such as an update.

        v^T A v / ||v||^2

    To second order a step u changes the loss by g^T u + ||u||^2 / 2 times this. It lies
    between the smallest and the largest eigenvalue, and where in between tells methods
    apart: Adam's steps avoid sharp directions, those of gradient descent seek them.

    Args:
      product: The symmetric map, such as `estimators.hessian_product`'s.
      direction: Tree like its vectors, of any length.

    Returns:
      The curvature, shape (), float32 or wider; 0 along a direction of zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators, probes
      >>> hessian = estimators.hessian_product(
      ...     lambda w: w[0] ** 2 / 2 + 5 * w[1] ** 2, jnp.ones(2))
      >>> print(probes.directional_sharpness(hessian, jnp.ones(2)))
      5.5

    Source:
      Pan, Li, "Toward understanding why Adam converges faster than SGD for
      transformers", 2023, arXiv:2306.00204.
    """
    along = _krylov.unit(links.widen(direction))
    return _inner(along, product(along))


_inner = jax.jit(links.inner_product)
