"""What differences of a loss need: a loss precise enough, and a step that is felt."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import trees


def require_precise_loss(who: str, value: Any) -> None:
    """Raises unless a loss is one number in float32 or wider.

    Args:
      who: Name of the method, for the error.
      value: What the loss returned.

    Raises:
      TypeError: If it is no array of shape (), or one in half precision, where the
        difference of two losses is mostly rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> links.require_precise_loss("mezo", jnp.ones((), jnp.bfloat16))
      Traceback (most recent call last):
      TypeError: mezo: the loss must be one number in float32 or wider, got bfloat16[]
    """
    value = jax.eval_shape(jnp.asarray, value)
    wide = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize >= 4
    if value.shape or not wide:
        raise TypeError(
            f"{who}: the loss must be one number in float32 or wider, got"
            f" {value.dtype}{list(value.shape)}"
        )


def require_felt(who: str, params: Any, eps: Any, compute_dtype: Any = None) -> None:
    """Raises unless parameters of size 1 can feel a step.

    Args:
      who: Name of the method, for the error.
      params: Tree of arrays.
      eps: Size of the step. An array, which may be traced, is not looked at.
      compute_dtype: Dtype of the moved parameters; None for their own, or float32
        where that is narrower.

    Raises:
      TypeError: If a leaf is not of real floats.
      ValueError: If a step is below the resolution of the dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> links.require_felt("mezo", jnp.ones(1, jnp.bfloat16), 1e-3)
      >>> links.require_felt("mezo", {"w": jnp.ones(1)}, 1e-3, jnp.bfloat16)
      Traceback (most recent call last):
      ValueError: mezo: eps=0.001 is below the resolution of bfloat16, 0.0078125, so
      most entries of leaf 'w' would not move; raise eps, or leave compute_dtype=None
    """
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = trees.path_string(path)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{who}: leaf {name!r} is {x.dtype}; only floats can be moved. Close"
                " the loss over what is not trained."
            )
        dtype = compute_dtype or jnp.promote_types(x.dtype, jnp.float32)
        resolution = float(jnp.finfo(dtype).eps)
        if isinstance(eps, numbers.Real | np.floating) and eps < resolution:
            raise ValueError(
                f"{who}: eps={eps} is below the resolution of {jnp.dtype(dtype)},"
                f" {resolution:.7g}, so most entries of leaf {name!r} would not move;"
                " raise eps, or leave compute_dtype=None"
            )
