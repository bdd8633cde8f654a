"""The Newton-Schulz routines of KellerJordan's Muon and of torch.optim.Muon."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from optlab import kernels
from tests.golden.comparing import FLOAT64, Images, Variant
from tests.golden.reading import Case
from tests.golden.settings import Settings

# In low precision two right answers are far apart: the iteration multiplies rounding
# errors in the null space by some 500. So the unit there is the reference's own
# distance from the float64 image, and optlab may be a few times as far from it.
LOW_PRECISION = 5.0


def added(
    coefficients: Sequence[float],
    steps: int,
    eps: float | jax.Array,
    dtype: str | None = None,
) -> Callable[[jax.Array], jax.Array]:
    """KellerJordan's rule: X / (||X|| + eps)."""
    return functools.partial(
        kernels.newton_schulz,
        coefficients=coefficients,
        steps=steps,
        eps=eps,
        compute_dtype=dtype,
    )


def clamped(
    coefficients: Sequence[float], steps: int, eps: float, dtype: str | None = None
) -> Callable[[jax.Array], jax.Array]:
    """Torch's rule: X / max(||X||, eps); the kernel gets what is missing to eps."""

    def orthogonalize(x: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
        missing = jnp.maximum(eps - norm, 0.0)
        return added(coefficients, steps, missing, dtype)(x)

    return orthogonalize


def newton_schulz(values: Settings, case: Case) -> Images:
    del case
    rule = values.take("coefficients"), values.take("steps"), values.take("eps", 1e-7)
    return Images(
        {
            "out_f64": Variant(added(*rule), "float64", FLOAT64),
            "out_torch_f64": Variant(clamped(*rule), "float64", FLOAT64),
            "out_f32": Variant(
                added(*rule),
                "float32",
                LOW_PRECISION,
                "float32, in units of the reference's own error",
                exact="out_f64",
                rounding=2.0**-24,
            ),
            # The kernel keeps the iterate in float32 and rounds the operands of its
            # products; the reference rounds everything.
            "out_bf16": Variant(
                added(*rule, dtype="bfloat16"),
                "float32",
                LOW_PRECISION,
                "bfloat16, in units of the reference's own error",
                exact="out_f64",
                rounding=2.0**-9,
            ),
        }
    )


ADAPTERS = {
    "zeropower_via_newtonschulz5 (out_f64, out_f32, out_bf16); "
    "torch.optim._muon._zeropower_via_newtonschulz (out_torch_f64)": newton_schulz
}
