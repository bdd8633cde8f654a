"""What methods that look at examples ask of a batch and of a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optlab import trees


def require_one_length(wanted: str, tree: Any) -> int:
    """Raises unless all leaves have the same number of rows, one or more.

    Args:
      wanted: Who needs what, for the error.
      tree: Tree of arrays (n, ...).

    Returns:
      The number n.

    Raises:
      ValueError: If there is no leaf, or leaves differ, are scalars or have no rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> links.require_one_length("mine: rows", {"x": jnp.ones((4, 2))})
      4
      >>> links.require_one_length("mine: rows", {"x": jnp.ones(4), "y": jnp.ones(3)})
      Traceback (most recent call last):
      ValueError: mine: rows; got the shapes {'x': (4,), 'y': (3,)}

    Source:
      Written for this library.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = {trees.path_string(path): jnp.shape(x) for path, x in leaves}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"{wanted}; got the shapes {shapes}")
    return lengths.pop()[0]


def loss_of_one(
    who: str, loss: Callable[[Any, Any], jax.Array]
) -> Callable[[Any, Any], jax.Array]:
    """Makes a loss of one example refuse to be anything but a number.

    Args:
      who: Name of the method, for the error.
      loss: From parameters and an example to a number.

    Returns:
      The loss; it raises a TypeError for a result that has a shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> loss = links.loss_of_one("mine", lambda w, x: w * x)
      >>> loss(2.0, 3.0)
      6.0
      >>> loss(2.0, jnp.ones(4))
      Traceback (most recent call last):
      TypeError: mine: the loss of one example must be one number, got the shape (4,);
      it takes an example, not a batch

    Source:
      Written for this library.
    """

    def one(params: Any, example: Any) -> jax.Array:
        value = loss(params, example)
        if jnp.shape(value):
            raise TypeError(
                f"{who}: the loss of one example must be one number, got the shape"
                f" {jnp.shape(value)}; it takes an example, not a batch"
            )
        return value

    return one
