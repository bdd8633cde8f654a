"""The whole spectrum of a curvature at once, by stochastic Lanczos quadrature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import kernels, links
from optlab.probes import _krylov


class SpectralDensity(NamedTuple):
    """What `spectral_density` finds.

    Attributes:
      nodes: Where each draw sees eigenvalues, rising, shape (draws, steps).
      weights: The share of all eigenvalues that each node stands for, shape
        (draws, steps); each row sums to 1.
      grid: Eigenvalues at which the density is told, shape (points,).
      density: Share of eigenvalues for each unit of eigenvalue, shape (points,).
    """

    nodes: jax.Array
    weights: jax.Array
    grid: jax.Array
    density: jax.Array


def spectral_density(
    product: _krylov.Map,
    params: Any,
    key: jax.Array,
    *,
    draws: int = 4,
    steps: int = 32,
    points: int = 1024,
    width: float = 0.01,
) -> SpectralDensity:
    """Estimates how the eigenvalues of a curvature are distributed.

    Each draw is a vector z of signs and a Lanczos run from it, whose quadrature has
    the moments of the spectrum as z sees it, exactly up to degree 2 steps - 1:

        sum_i weight_i f(node_i) = z^T f(A) z / d,   with mean trace f(A) / d

    so the mean of `weights * f(nodes)` over draws, summed over nodes, estimates the
    mean of f over the d eigenvalues: 1 of the mass, trace / d of the nodes themselves.
    The density puts a Gaussian on each node.

    Jitting and products that read from an iterator: as in `top_eigenpairs`.

    Args:
      product: The symmetric map, such as `estimators.hessian_product`'s.
      params: Tree like its vectors; only shapes, dtypes and places count.
      key: Typed random key.
      draws: Number of vectors z; the error falls with its root, and with d.
      steps: Products for each draw, at most one for each parameter; the memory of as
        many vectors.
      points: Length of the grid, which reaches 5 Gaussians beyond the nodes.
      width: Standard deviation of the Gaussians, as a part of the distance between the
        outermost nodes.

    Returns:
      Nodes and weights, and the density.

    Raises:
      ValueError: If a number makes no sense, or the grid is too coarse for the width.
      TypeError: If the key is not a typed one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators, probes
      >>> curvatures = jnp.repeat(jnp.array([0.0, 1.0, 50.0]), jnp.array([80, 19, 1]))
      >>> loss = lambda w: jnp.sum(curvatures * w**2) / 2
      >>> hessian = estimators.hessian_product(loss, jnp.ones(100))
      >>> found = probes.spectral_density(
      ...     hessian, jnp.ones(100), jax.random.key(0), draws=1, steps=3)
      >>> [f"{share:.2f} at {node:.0f}".replace("-", "")
      ...     for share, node in zip(found.weights[0], found.nodes[0])]
      ['0.80 at 0', '0.19 at 1', '0.01 at 50']

    Source:
      Ghorbani, Krishnan, Xiao, "An investigation into neural net optimization via
      Hessian eigenvalue density", 2019, arXiv:1901.10159. Differs from the authors'
      code: signs instead of normal numbers, whose draws scatter less; the width goes
      with the spectrum, so that a small one is not blurred to one hill; an exhausted
      space goes on instead of dividing by zero.
    """
    who = "spectral_density"
    links.require_key(who, key)
    links.require_positive(who, width=width)
    m = _krylov.order(who, "steps", steps, params)
    if draws < 1:
        raise ValueError(f"{who}: draws must be 1 or more, got {draws}")
    if points * width < 2:
        raise ValueError(
            f"{who}: a grid of {points} points is too coarse for Gaussians of width"
            f" {width}; points times width must be 2 or more"
        )
    wide = links.widen(params)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        reduced = _krylov.tridiagonal(product, _krylov.signs_like(key, wide), m)
        return reduced.alpha, reduced.beta

    keys = jax.random.split(key, draws)
    if _krylov.on_host(product):
        rows = [one(keys[i]) for i in range(draws)]
    else:
        alphas, betas = jax.lax.map(one, keys)
        rows = [(alphas[i], betas[i]) for i in range(draws)]
    nodes, weights = map(jnp.stack, zip(*map(_quadrature, rows), strict=True))
    return SpectralDensity(nodes, weights, *_smoothed(nodes, weights, points, width))


@jax.jit
def _quadrature(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return kernels.quadrature(*row)


def _smoothed(
    nodes: jax.Array, weights: jax.Array, points: int, width: float
) -> tuple[jax.Array, jax.Array]:
    """Returns a grid and the mean of the draws' Gaussians on it."""
    low, high = jnp.min(nodes), jnp.max(nodes)
    # All eigenvalues may be one.
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    span = jnp.maximum(high - low, 1e-3 * jnp.where(size > 0, size, 1))
    sigma = width * span
    grid = jnp.linspace(low - 5 * sigma, high + 5 * sigma, points)

    def hills(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        at, share = row
        away = (grid[:, None] - at) / sigma
        return jnp.sum(share * jnp.exp(-(away**2) / 2), 1)

    density = jnp.mean(jax.lax.map(hills, (nodes, weights)), 0)
    # Divided twice, or a spectrum of 1e-30 would have an area of zero.
    density = density / jnp.sum(density) / (grid[1] - grid[0])
    return grid, density
