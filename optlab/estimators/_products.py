"""Curvature as a map: vectors times the Hessian, or its Gauss-Newton part."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from optlab import links
from optlab.estimators import _hessian


@dataclasses.dataclass(frozen=True)
class Product:
    """A symmetric linear map, from trees like the parameters to trees like them.

    This is all that the probes of a spectrum ask for. A function of your own that is
    traceable and takes and gives float32 will do in its place.

    Attributes:
      apply: The map.
      on_host: Whether it reads batches from an iterator. Then it cannot be traced, and
        the loops around it run in Python.
    """

    apply: Callable[[Any], Any]
    on_host: bool = False

    def __call__(self, vector: Any) -> Any:
        """Returns the map's value at a vector."""
        return self.apply(vector)


def hessian_product(
    loss: Callable[..., jax.Array], params: Any, *, batches: Any = None
) -> Product:
    """Makes the map v -> H v with the Hessian of a loss, on a batch or a data set.

        H v = 1 / k  sum over k batches of  d/de grad loss(w + e v, batch) at e = 0

    The memory is that of one batch, about four times that of its gradient.

    Args:
      loss: From parameters to a number; with batches, from parameters and a batch to
        the mean over its examples.
      params: Tree of arrays, the point w. Half precision is widened to float32, and
        the loss is evaluated there: a Hessian in bfloat16 is mostly rounding.
      batches: None; a tree of arrays (k, b, ...), k batches of one size in device
        memory; or a function without arguments that returns a new iterator over
        batches, for data that are read as they are needed, with every product anew.

    Returns:
      The map, in float32 or wider. Batches of an iterator are weighted by their
      examples, the first axis.

    Raises:
      TypeError: If batches are an iterator themselves, which one product exhausts.
      ValueError: If the first axes differ, or an iterator gives nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> x = jnp.array([[[1.0, 0.0]], [[0.0, 3.0]]])  # two batches of one example
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2) / 2
      >>> hessian = estimators.hessian_product(loss, jnp.zeros(2), batches=x)
      >>> print(hessian(jnp.ones(2)))
      [0.5 4.5]

    Source:
      Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
    """
    parts = (_of_hessian, loss)
    return _mean("hessian_product", parts, links.widen(params), batches)


def gauss_newton_product(
    model: Callable[..., Any],
    loss: Callable[..., jax.Array],
    params: Any,
    *,
    batches: Any = None,
) -> Product:
    """Makes the map v -> G v with the generalised Gauss-Newton matrix.

        G = J^T H J,   J the Jacobian of the model, H the Hessian of the loss by its
        outputs

    What the Hessian has besides is the curvature of the model, weighted by what it
    still gets wrong. With a convex loss G has no negative eigenvalue.

    Args:
      model: From parameters to outputs, a tree of arrays; with batches, from
        parameters and a batch.
      loss: From outputs to a number; with batches, from outputs and a batch to the
        mean over its examples.
      params: Tree of arrays, as for `hessian_product`.
      batches: As for `hessian_product`.

    Returns:
      The map, in float32 or wider.

    Raises:
      TypeError: As `hessian_product`.
      ValueError: As `hessian_product`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> model, loss = jnp.square, lambda z: jnp.sum((z - 4) ** 2) / 2
      >>> w = jnp.array([1.0, 3.0])
      >>> print(estimators.gauss_newton_product(model, loss, w)(jnp.ones(2)))
      [ 4. 36.]

    Source:
      Schraudolph, "Fast curvature matrix-vector products for second-order gradient
      descent", 2002.
    """
    parts = (_of_gauss_newton, model, loss)
    return _mean("gauss_newton_product", parts, links.widen(params), batches)


def preconditioned_product(product: Callable[[Any], Any], diagonal: Any) -> Product:
    """Makes the map with D^-1/2 A D^-1/2, whose eigenvalues are those of D^-1 A.

    The curvature as a method sees it that divides its gradients by D: for Adam D is
    the root of its second moments, plus epsilon.

    Args:
      product: The map A.
      diagonal: Tree like its vectors, the entries of D, above 0.

    Returns:
      The map.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> hessian = estimators.hessian_product(
      ...     lambda w: 8 * w[0] ** 2 + w[1] ** 2, jnp.zeros(2))
      >>> seen = estimators.preconditioned_product(hessian, jnp.array([4.0, 1.0]))
      >>> print(seen(jnp.ones(2)))
      [4. 2.]

    Source:
      Cohen et al., "Adaptive gradient methods at the edge of stability", 2022,
      arXiv:2207.14484.
    """
    diagonal = links.widen(diagonal)

    def apply(vector: Any) -> Any:
        return _over_root(product(_over_root(vector, diagonal)), diagonal)

    return Product(apply, getattr(product, "on_host", False))


@jax.jit
def _over_root(vector: Any, diagonal: Any) -> Any:
    return jax.tree.map(lambda v, d: v / jnp.sqrt(d), vector, diagonal)


def _of_hessian(loss: Any, params: Any, vector: Any, *batch: Any) -> Any:
    return _hessian.hessian_vector_product(lambda w: loss(w, *batch), params, vector)


def _of_gauss_newton(
    model: Any, loss: Any, params: Any, vector: Any, *batch: Any
) -> Any:
    def outputs(w: Any) -> Any:
        return model(w, *batch)

    z, moved = jax.jvp(outputs, (params,), (vector,))
    bent = _hessian.hessian_vector_product(lambda z: loss(z, *batch), z, moved)
    return jax.vjp(outputs, params)[1](bent)[0]


def _mean(
    who: str, parts: tuple[Callable[..., Any], ...], params: Any, batches: Any
) -> Product:
    """Makes the mean over the batches of a product, given with its functions."""
    one = functools.partial(*parts)
    if batches is None:
        return Product(lambda vector: one(params, vector))
    if callable(batches):
        return Product(_over_iterator(who, parts, params, batches), on_host=True)
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{who}: batches must be arrays, or a function that returns a new iterator"
            f" over them, got a {type(batches).__name__}, which the first product would"
            " exhaust"
        )
    count = _length(who, batches)

    def apply(vector: Any) -> Any:
        def add(total: Any, batch: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(params, vector, batch)), None

        zero = jax.tree.map(jnp.zeros_like, vector)
        total, _ = jax.lax.scan(add, zero, batches)
        return jax.tree.map(lambda x: x / count, total)

    return Product(apply)


# What is compiled serves every point of a run; a few, as losses may hold data.
@functools.lru_cache(maxsize=4)
def _adder(parts: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    one = functools.partial(*parts)

    @jax.jit
    def add(params: Any, vector: Any, total: Any, size: Any, batch: Any) -> Any:
        more = one(params, vector, batch)
        return jax.tree.map(lambda t, x: t + size * x, total, more)

    return add


def _over_iterator(
    who: str,
    parts: tuple[Callable[..., Any], ...],
    params: Any,
    batches: Callable[[], Any],
) -> Callable[[Any], Any]:
    add = _adder(parts)

    def apply(vector: Any) -> Any:
        total, seen = _scaled(vector, 0.0), 0
        for batch in batches():
            size = _length(who, batch)
            total = add(params, vector, total, float(size), batch)
            # No batch is read before the one at hand is done with.
            jax.block_until_ready(total)
            seen += size
        if not seen:
            raise ValueError(
                f"{who}: batches() gave no batch; it is called for every product and"
                " must return a new iterator each time"
            )
        return jax.block_until_ready(_scaled(total, 1 / seen))

    return apply


@jax.jit
def _scaled(tree: Any, factor: Any) -> Any:
    return jax.tree.map(lambda x: factor * x, tree)


def _length(who: str, batch: Any) -> int:
    """Returns the first size of every leaf."""
    return links.require_one_length(
        f"{who}: every leaf of the batches must have the same first axis, of size 1 or"
        " more",
        batch,
    )
