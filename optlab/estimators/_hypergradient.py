"""Gradients by what a training run was set up with, through its optimum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import links
from optlab.estimators import _hessian, _inverse_product

Loss = Callable[..., jax.Array]


class HypergradientEstimate(NamedTuple):
    """What `implicit_hypergradient` gives.

    Attributes:
      value: The upper loss f(x, y), shape ().
      grads: The estimate of dF/dx, shaped like the hyperparameters and of their dtypes.
      solution: q = H^-1 d_y f, shaped like the parameters, float32 or wider: the
        `start` of the next call.
      residual: ||d_y f - H q|| / ||d_y f||, shape (): how far q is from solved.
      steps: Products with H, shape (), int32.
    """

    value: jax.Array
    grads: Any
    solution: Any
    residual: jax.Array
    steps: jax.Array


def implicit_hypergradient(
    upper: Loss,
    lower: Loss,
    hyper: Any,
    params: Any,
    *,
    method: str = "cg",
    steps: int = 100,
    tol: float | jax.Array = 1e-5,
    rate: float | jax.Array | None = None,
    damping: float | jax.Array = 0.0,
    start: Any = None,
    batches: Any = None,
) -> HypergradientEstimate:
    """Differentiates a loss of trained parameters by the hyperparameters of training.

    Parameters y(x) minimise the lower loss g(x, .), and F(x) = f(x, y(x)):

        H q = d_y f,   H = d_yy g
        dF/dx = d_x f - (d_x d_y g)^T q

    No step of the training is remembered. It is right at the optimum only: where the
    gradient of g is not zero yet, the error is about its length over the smallest
    eigenvalue of H. The memory is a few copies of the parameters, and about four times
    that of a gradient of g.

    Args:
      upper: f: from hyperparameters and parameters to a number, such as the loss on
        validation data.
      lower: g: from the same, and a batch if there are batches, to a number that is
        strongly convex in the parameters near the optimum.
      hyper: Tree of arrays, x. Half precision is widened to float32, here and in the
        parameters, and the losses are evaluated there.
      params: Tree of arrays, the optimum y(x).
      method: As `inverse_product`: 'cg', or 'neumann' for a series of fixed length.
      steps: As there.
      tol: As there.
      rate: As there.
      damping: As there. It makes the estimate smaller along directions of little
        curvature.
      start: The solution of the call before, for a warm start.
      batches: Tree of arrays (steps, ...), for 'neumann': the lower loss is that of one
        batch in each step, and of the last in the mixed derivative.

    Returns:
      The estimate. Of a residual that is not small the gradient is not that of F.

    Raises:
      ValueError: As `inverse_product`.
      TypeError: If leaves are not of floats, or a loss is not one number in float32 or
        wider.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> upper = lambda x, y: jnp.sum((y - 1) ** 2) / 2
      >>> lower = lambda x, y: jnp.sum((y - 2) ** 2) / 2 + x * jnp.sum(y**2) / 2
      >>> x = jnp.array(0.6)  # strength of the decay; with 1.0 the optimum is at 1
      >>> y = jnp.full(1, 2 / (1 + x))
      >>> found = estimators.implicit_hypergradient(upper, lower, x, y)
      >>> print(f"{found.grads:.4f} {(y[0] - 1) * -2 / (1 + x) ** 2:.4f}")
      -0.1953 -0.1953

    Source:
      Pedregosa, "Hyperparameter optimization with approximate gradient", 2016,
      arXiv:1602.02355; the warm-started series is the recursion for z in Hao, Gong,
      Liu, "Bilevel optimization under unbounded smoothness", 2024.
    """
    who = "implicit_hypergradient"
    _inverse_product.require_method(who, method, steps, tol, rate, damping, batches)
    x, y = _wide(who, hyper), _wide(who, params)
    batch = () if batches is None else (jax.tree.map(lambda b: b[-1], batches),)
    for loss, more in ((upper, ()), (lower, batch)):
        links.require_precise_loss(who, jax.eval_shape(loss, x, y, *more))
    value, (direct, v) = jax.value_and_grad(upper, (0, 1))(x, y)

    def product(q: Any, *batch: Any) -> Any:
        return _hessian.hessian_vector_product(lambda y: lower(x, y, *batch), y, q)

    found = _inverse_product.inverse_product(
        product,
        v,
        method=method,
        steps=steps,
        tol=tol,
        rate=rate,
        damping=damping,
        start=start,
        batches=batches,
    )
    # d_x <d_y g, q> is the derivative of d_x g along q: forward over backward again.
    mixed = jax.jvp(lambda y: jax.grad(lower)(x, y, *batch), (y,), (found.value,))[1]
    grads = jax.tree.map(
        lambda h, d, m: (d - m).astype(jnp.asarray(h).dtype), hyper, direct, mixed
    )
    return HypergradientEstimate(value, grads, *found)


def penalty_hypergradient(
    upper: Loss,
    lower: Loss,
    hyper: Any,
    params: Any,
    reference: Any,
    sigma: float | jax.Array,
) -> Any:
    """Differentiates by hyperparameters through two optima, by gradients alone.

    With y the minimum of sigma f(x, .) + g(x, .) and z that of g(x, .),

        dF/dx = d_x f(x, y) + (d_x g(x, y) - d_x g(x, z)) / sigma + O(sigma)

    There is no second derivative and no linear system. What there is instead are two
    copies of the parameters, and a difference that is divided by sigma: its rounding
    and the noise of its batches grow as sigma falls, so both terms must have the same
    batch. `solvers.penalty_bilevel` keeps y and z near their optima along a run.

    Args:
      upper: f: from hyperparameters and parameters to a number.
      lower: g: likewise; on one batch.
      hyper: Tree of arrays, x. Half precision is widened to float32 in all three, and
        the losses are evaluated there.
      params: Tree of arrays, y.
      reference: Tree like it, z.
      sigma: Weight of the upper loss, above 0.

    Returns:
      The estimate, shaped like the hyperparameters, float32 or wider.

    Raises:
      ValueError: If sigma is not above 0, or is below the resolution of the parameters,
        where y and z would be the same.
      TypeError: If leaves are not of floats, or a loss is not one number in float32 or
        wider.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> upper = lambda x, y: (y - 1) ** 2 / 2
      >>> lower = lambda x, y: (y - x) ** 2  # y(x) = x, so dF/dx = x - 1
      >>> for sigma in (1.0, 0.1, 0.01):
      ...     y = (sigma + 2 * 3.0) / (sigma + 2)
      ...     found = estimators.penalty_hypergradient(
      ...         upper, lower, 3.0, y, 3.0, sigma)
      ...     print(f"{found:.3f}")
      1.333
      1.905
      1.990

    Source:
      Kwon, Kwon, Wright, Nowak, "On penalty methods for nonconvex bilevel optimization
      and first-order stochastic approximation", 2023, arXiv:2309.01753.
    """
    who = "penalty_hypergradient"
    links.require_positive(who, sigma=sigma)
    x, y, z = (_wide(who, tree) for tree in (hyper, params, reference))
    _require_apart(who, y, sigma)
    for loss in (upper, lower):
        links.require_precise_loss(who, jax.eval_shape(loss, x, y))
    direct, near, far = (
        jax.grad(upper)(x, y),
        jax.grad(lower)(x, y),
        jax.grad(lower)(x, z),
    )
    return jax.tree.map(lambda d, a, b: d + (a - b) / sigma, direct, near, far)


def _wide(who: str, tree: Any) -> Any:
    tree = jax.tree.map(jnp.asarray, tree)
    links.require_felt(who, tree, 1)
    return links.widen(tree)


def _require_apart(who: str, params: Any, sigma: Any) -> None:
    for x in jax.tree.leaves(params):
        resolution = float(jnp.finfo(x.dtype).eps)
        if isinstance(sigma, float) and sigma < resolution:
            raise ValueError(
                f"{who}: sigma={sigma} is below the resolution of {x.dtype},"
                f" {resolution:.7g}: the two copies of the parameters, about sigma"
                " apart, would be the same; raise sigma"
            )
