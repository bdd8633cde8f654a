"""TrAct: the gradient of a first layer that trains its outputs, not its weights."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import links

_CONV = ("NHWC", "HWIO", "NHWC")
_PADDINGS = ("SAME", "VALID", "SAME_LOWER")


def tract_dense(
    x: jax.Array, kernel: jax.Array, *, damping: float | jax.Array = 0.1
) -> jax.Array:
    """Multiplies by a kernel whose gradient is that of a change of the outputs.

    The weights of a first layer cannot follow what their outputs want: a dark image
    moves them less than a bright one. Here the gradient of the weights is the change
    that moves the outputs most nearly along theirs, with b rows in all:

        z = X W
        dL/dW = (X'X / b + damping I)^-1 X' dL/dZ

    and where b is less than the n inputs, the same from a smaller system,
    X' (X X' / b + damping I)^-1 dL/dZ. The gradient of x is as ever, and so is that of
    a bias, which the caller adds. Use it in the first layer in place of its product,
    with the same optimizer and learning rate, for inputs with mean 0 and variance 1:

        class First(nnx.Linear):
            def __call__(self, x):
                return estimators.tract_dense(x, self.kernel[...]) + self.bias[...]

    Args:
      x: Inputs X, shape (..., n); all leading axes count rows.
      kernel: Kernel W, shape (n, m).
      damping: Multiple of the identity, above 0. In float32 it must also be above some
        1e-6 of the largest eigenvalue of X'X / b, or the solve fails and the gradient
        is NaN, as with 784 pixels of 0 to 255.

    Returns:
      The product, shape (..., m). Statistics and solves of its gradient are float32 or
      wider; the gradient has the kernel's dtype and place. Under `jax.jit` with a batch
      that is cut over devices, statistics are those of the whole batch; under
      `jax.vmap` and `jax.shard_map`, of one element or shard. No forward-mode
      derivatives.

    Raises:
      ValueError: If shapes do not fit or the damping is not above 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> loss = lambda w: jnp.sum(estimators.tract_dense(x, w))
      >>> [f"{entry:.4f}" for entry in jax.grad(loss)(jnp.zeros((2, 1)))[:, 0]]
      ['1.6667', '0.9524']

    Source:
      Petersen et al., "TrAct: making first-layer pre-activations trainable", 2024,
      arXiv:2410.23970, and the authors' code. Differs from its Cholesky variant, which
      solves with the matrix for its factor; the smaller system is another form of
      theirs.
    """
    links.require_positive("tract_dense", damping=damping)
    if jnp.ndim(kernel) != 2 or not jnp.ndim(x) or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"tract_dense: x of shape {jnp.shape(x)} and kernel of shape"
            f" {jnp.shape(kernel)}; they must be (..., n) and (n, m)"
        )
    return _linear(jnp.matmul, lambda x: x, x, kernel, damping)


def tract_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    damping: float | jax.Array = 0.1,
) -> jax.Array:
    """Convolves with a kernel whose gradient is that of a change of the outputs.

    As `tract_dense`, where X has a row for each patch that the window sees: b is the
    number of images times that of outputs of an image.

    Args:
      x: Images, shape (b, height, width, channels).
      kernel: Kernel as in Flax, shape (window height, window width, channels, m).
      strides: Steps of the window, one for both axes or a pair.
      padding: 'SAME', 'VALID', 'SAME_LOWER', or two pairs of numbers of zeros.
      damping: Multiple of the identity, above 0.

    Returns:
      Outputs, shape (b, height', width', m); see `tract_dense`.

    Raises:
      ValueError: If shapes do not fit or the damping is not above 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> x = jnp.ones((1, 2, 2, 1))
      >>> loss = lambda w: jnp.sum(estimators.tract_conv(x, w))
      >>> print(f"{jax.grad(loss)(jnp.zeros((1, 1, 1, 1))).item():.4f}")  # 4 / 1.1
      3.6364

    Source:
      As `tract_dense`.
    """
    links.require_positive("tract_conv", damping=damping)
    if jnp.ndim(x) != 4 or jnp.ndim(kernel) != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"tract_conv: x of shape {jnp.shape(x)} and kernel of shape"
            f" {jnp.shape(kernel)}; they must be (b, height, width, channels) and"
            " (window height, window width, channels, m)"
        )
    pair: Any = strides if np.ndim(strides) else (strides, strides)
    if len(pair) != 2 or not all(
        isinstance(s, int | np.integer) and s > 0 for s in pair
    ):
        raise ValueError(
            f"tract_conv: strides must be one integer above 0 or two, got {strides}"
        )
    named = isinstance(padding, str) and padding.upper() in _PADDINGS
    if not named and np.shape(padding) != (2, 2):
        raise ValueError(
            f"tract_conv: padding must be one of {_PADDINGS} or two pairs, got"
            f" {padding!r}"
        )
    pads = padding if isinstance(padding, str) else [(a, b) for a, b in padding]
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=pair,
        padding=pads,
        dimension_numbers=_CONV,
    )

    def patches(x: jax.Array) -> jax.Array:
        seen = jax.lax.conv_general_dilated_patches(
            x,
            kernel.shape[:2],
            pair,
            pads,
            dimension_numbers=_CONV,
            precision=jax.lax.Precision.HIGHEST,
        )
        # Channels come first in a patch; in a kernel they come behind the window.
        window = math.prod(kernel.shape[:2])
        seen = seen.reshape(*seen.shape[:3], kernel.shape[2], window)
        return jnp.swapaxes(seen, -1, -2).reshape(*seen.shape[:3], -1)

    return _linear(convolve, patches, x, kernel, damping)


def _linear(
    apply: Callable[..., jax.Array],
    rows: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    damping: Any,
) -> jax.Array:
    """Returns apply(x, kernel), with the gradient of this file.

    Args:
      apply: Bilinear, from x and kernel to outputs, shape (..., m).
      rows: From x to X, shape (..., n), with apply(x, W) = X W for W the kernel with
        its first axes merged.
      x: Inputs.
      kernel: Kernel.
      damping: Multiple of the identity.
    """

    @jax.custom_vjp
    def product(x: jax.Array, kernel: jax.Array, damping: Any) -> jax.Array:
        del damping
        return apply(x, kernel)

    def forward(x: jax.Array, kernel: jax.Array, damping: Any) -> Any:
        return apply(x, kernel), (x, kernel, damping)

    def backward(saved: Any, g: jax.Array) -> Any:
        x, kernel, damping = saved
        (to_x,) = jax.linear_transpose(lambda x: apply(x, kernel), x)(g)
        wide = jnp.promote_types(g.dtype, jnp.float32)

        def change(x: jax.Array, g: jax.Array, damping: Any) -> jax.Array:
            found = _least_change(rows(x.astype(wide)), g.astype(wide), damping)
            return found.reshape(kernel.shape).astype(kernel.dtype)

        # Solves have no placement of their own to name: the compiler finds one.
        anywhere: Callable[..., Any] = change
        if any(any(jax.typeof(a).sharding.spec) for a in (x, kernel)):
            place = jax.typeof(kernel).sharding.spec
            anywhere = jax.sharding.auto_axes(change, out_sharding=place)
        return to_x, anywhere(x, g, damping), jnp.zeros_like(damping)

    product.defvjp(forward, backward)
    # Outside, so that gradients go back to the dtypes and devices that they came from.
    x, kernel = links.vary_like(x, kernel), links.vary_like(kernel, x)
    dtype = jnp.result_type(x, kernel)
    return product(x.astype(dtype), kernel.astype(dtype), damping)


def _least_change(x: jax.Array, g: jax.Array, damping: Any) -> jax.Array:
    """Solves (X'X / b + damping I) D = X'G for D, in the smaller of two forms."""
    n, b = x.shape[-1], math.prod(x.shape[:-1])
    x, g = (a.reshape(b, a.shape[-1]) for a in (x, g))
    times = functools.partial(jnp.matmul, precision="highest")
    if b < n:
        return times(x.T, _solve(times(x, x.T) / max(b, 1), damping, g))
    return _solve(times(x.T, x) / b, damping, times(x.T, g))


def _solve(gram: jax.Array, damping: Any, right: jax.Array) -> jax.Array:
    damped = gram + damping * jnp.eye(len(gram), dtype=gram.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), right)
