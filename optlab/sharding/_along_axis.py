"""Newton-Schulz on matrices that stay cut: Gram matrices are summed over the mesh."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding

from optlab.sharding import _spread
from optlab.sharding._moves import moved, spec_of
from optlab.sharding._parameters import cuts_of


@dataclasses.dataclass(frozen=True)
class AlongAxis:
    """A kernel for matrices that are cut along a side; see `along_axis`."""

    kernel: Callable[..., jax.Array]
    over: _spread.Spread
    reshards = True

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the kernel to a stack (k, m, n)."""
        if x.ndim != 3:
            raise ValueError(f"along_axis: needs a stack (k, m, n), got {x.shape}")
        given, axes = self.over.where(x), self.over.axes
        side = -1 if x.shape[-1] >= x.shape[-2] else -2
        devices = self.over.pad
        if x.shape[side] % devices:
            raise ValueError(
                f"along_axis: the {devices} devices along {axes} do not divide the"
                f" longer side of matrices of shape {x.shape[1:]}; use fewer axes, or"
                " sharding.over_axis, which keeps matrices whole"
            )
        # The stack may stay cut over other axes; the shorter side must be whole.
        rows = tuple(a for a in cuts_of(given.spec, 3)[0] if a not in axes)
        sides = (axes, ()) if side == -2 else ((), axes)
        spec = spec_of((rows, *sides))
        kernel = functools.partial(self.kernel, along=(side, axes))
        near = moved(x, given, spec)
        found = self.over.on_blocks(kernel, spec, spec)(near)
        return moved(found, NamedSharding(given.mesh, spec), given.spec)


def along_axis(
    kernel: Callable[..., jax.Array], mesh: Mesh, axes: str | tuple[str, ...]
) -> AlongAxis:
    """Makes Newton-Schulz work on matrices that stay cut along their longer side.

    For a few matrices, larger than what a device should hold: none is ever whole. Of an
    m x n matrix, m <= n, on d devices, each has m x n / d and sums Gram matrices,

        G = sum over devices of X_d X_d^T        one all-reduce of m^2 numbers
        X_d <- Q(G) X_d                          nothing is sent

    once in the Gram form without restarts, once a step in the standard form; the work
    on G is repeated on every device. For k matrices `over_axis` sends 2 k m n / d
    numbers from a device, this 2 k m^2 a Gram matrix: it is for k < d, and n > d m.
    A matrix that is cut along its shorter side is moved there and back first.

    Args:
      kernel: `kernels.newton_schulz`, or `functools.partial` of it; it takes `along`.
      mesh: Mesh on which the matrices live, with Explicit axes; one with Auto axes
        under `placed`.
      axes: Name, or names, of the mesh axes that cut the longer side.

    Returns:
      The kernel for stacks (k, m, n), to be used as `orthogonalize`.

    Raises:
      ValueError: As `over_axis`; if the devices do not divide the longer side.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import kernels, sharding
      >>> mesh = jax.make_mesh((1,), ("model",))
      >>> kernel = sharding.along_axis(kernels.newton_schulz, mesh, "model")
      >>> with jax.set_mesh(mesh):
      ...     print(kernel(3 * jnp.ones((1, 4, 4)))[0, 0, 0].round(2))
      0.17

    Source:
      Written for this library.
    """
    axes = _spread.known_axes("along_axis", mesh, axes)
    return AlongAxis(kernel, _spread.spread(mesh, axes))
