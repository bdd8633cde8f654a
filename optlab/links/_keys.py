"""Random keys that methods take from their callers."""

from typing import Any

import jax
import jax.numpy as jnp


def require_key(who: str, key: Any) -> None:
    """Raises unless an argument is one typed random key.

    Args:
      who: Name of the method, for the error.
      key: The argument, which may be traced.

    Raises:
      TypeError: If it is a number, a raw key of integers or several keys.

    Example:
      >>> from optlab import links
      >>> links.require_key("sketch", 0)
      Traceback (most recent call last):
      TypeError: sketch: key must be one typed key, as of jax.random.key(0), got int
    """
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed or jnp.shape(key):
        got = type(key).__name__ if dtype is None else f"{dtype}{list(jnp.shape(key))}"
        raise TypeError(
            f"{who}: key must be one typed key, as of jax.random.key(0), got {got}"
        )
