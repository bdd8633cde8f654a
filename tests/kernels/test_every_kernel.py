"""What all kernels keep: dtypes, precision, rotations, matrices of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

# Each kernel has a file of its own with the tests that run every time.
pytestmark = pytest.mark.slow

N = 4
RNG = np.random.default_rng(0)
V, W = RNG.normal(size=(2, N))
SQUARE = np.linalg.qr(RNG.normal(size=(N, N)))[0]


def spd():
    """Symmetric, with eigenvalues from 0.2 to 2."""
    return SQUARE * np.linspace(0.2, 2, N) @ SQUARE.T


def of_basis(find):
    """The projection on a basis: columns have arbitrary signs."""

    def projection(x):
        q = find(x, 2)
        return jnp.matmul(q, q.mT, precision="highest").astype(x.dtype)

    return projection


def like(x, value):
    return jnp.asarray(value, x.dtype)


# From a symmetric positive definite matrix, and a rotation Q that goes with it, to a
# matrix that turns along: f(Q X Q^T) = Q f(X) Q^T.
TURNING = {
    "newton_schulz": lambda x, q: kernels.newton_schulz(x, "polar_express"),
    "gram": lambda x, q: kernels.newton_schulz(x, "accurate", form="gram"),
    "dual_norm": lambda x, q: kernels.by_dual_norm(kernels.newton_schulz)(x),
    "inverse_root": lambda x, q: kernels.inverse_root(x, 2),
    "newton_inverse_root": lambda x, q: kernels.newton_inverse_root(x, 2),
    "singular_basis": lambda x, q: of_basis(kernels.singular_basis)(x),
    "range_basis": lambda x, q: of_basis(
        functools.partial(kernels.range_basis, power_steps=40)
    )(x),
    "newton_schulz_inverse": lambda x, q: kernels.newton_schulz_inverse(x),
    **{
        f"damped_inverse_{method}": (
            lambda x, q, method=method: kernels.damped_inverse(x, 0.1, method)
        )
        for method in kernels.INVERSE_METHODS
    },
    **{
        f"rank_one_{rule}": (
            lambda x, q, rule=rule: kernels.rank_one_inverse(
                x, like(x, q @ V), 0.9, rule
            )
        )
        for rule in kernels.RANK_ONE_RULES
    },
    "limit_growth": lambda x, q: kernels.limit_growth(x, jnp.ones(()))[0],
    "axis_product": lambda x, q: kernels.axis_product(x, 0),
    "kronecker": lambda x, q: kernels.kronecker_apply(
        x, [like(x, q @ np.diag(V) @ q.T), None]
    ),
    "low_rank": lambda x, q: kernels.lift(
        kernels.project(x, like(x, q[:, :2])), like(x, q[:, :2])
    ),
}
# These depend on the coordinates.
FIXED = {
    "aol": lambda x: kernels.newton_schulz(x, "turbo"),
    "largest_slices": kernels.largest_slices(lambda y: 2 * y, 0.5),
    "blocks": lambda x: kernels.merge_blocks(
        kernels.split_blocks(x[None], 3), (1, N, N), 3
    )[0],
    "window_solve": lambda x: kernels.window_solve(x, like(x, V), 0.5),
    "window_diagonal": lambda x: kernels.window_inverse_diagonal(x, 0.5),
    "eigenbasis": lambda x: jnp.abs(kernels.eigenbasis(x)),
    "refresh_eigenbasis": lambda x: jnp.abs(
        kernels.refresh_eigenbasis(x, like(x, SQUARE))[0]
    ),
    "orthonormalize": kernels.orthonormalize,
    **{
        f"tangent_part_{manifold}": (
            lambda x, manifold=manifold: kernels.tangent_part(
                like(x, SQUARE[:, :2]), x[:, :2], manifold
            )
        )
        for manifold in kernels.MANIFOLDS
    },
    **{
        f"retract_{method}": (
            lambda x, method=method: kernels.retract(
                like(x, SQUARE[:, :2]), x[:, :2], method
            )
        )
        for method in kernels.RETRACTIONS
    },
}
ALL = {
    **{name: functools.partial(f, q=np.eye(N)) for name, f in TURNING.items()},
    **FIXED,
}
over_all = pytest.mark.parametrize("name", ALL)


@functools.cache
def exact(name, dtype):
    """In float64, from the matrix that has been rounded to dtype."""
    x = np.asarray(jnp.asarray(spd(), dtype), np.float64)
    with jax.enable_x64(True):
        return np.asarray(jax.jit(ALL[name])(jnp.asarray(x)))


@over_all
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept_and_computed_in_float32_or_wider(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(spd(), dtype)
        got = jax.jit(ALL[name])(x)
        assert got.dtype == x.dtype
        want = exact(name, dtype)
        # One rounding of what comes out; vectors that come in are rounded once too. In
        # float32 and wider some roundings times the slope of Newton-Schulz at zero.
        half = jnp.finfo(dtype).bits == 16
        bound = (4 if half else 2e3) * float(jnp.finfo(dtype).eps)
        got = np.asarray(got, np.float64)
        assert np.abs(got - want).max() <= bound * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("name", TURNING)
def test_a_rotated_matrix_has_the_rotated_result(name):
    q = np.linalg.qr(np.random.default_rng(5).normal(size=(N, N)))[0]
    with jax.enable_x64(True):
        turned = jax.jit(lambda x: TURNING[name](x, q))(jnp.asarray(q @ spd() @ q.T))
    want = q @ exact(name, "float64") @ q.T
    np.testing.assert_allclose(turned, want, atol=1e-10 * max(1, np.abs(want).max()))


@over_all
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("rank_one", [False, True])
def test_matrices_of_any_size_and_rank_one_stay_finite(name, size, rank_one):
    if name == "axis_product" and size > 1:
        pytest.skip("squares beyond 1e19 overflow, as its docstring says")
    if name.startswith("rank_one") and size > 1:
        pytest.skip("promised for vectors of any size, in their own test")
    x = jnp.asarray(size * (np.outer(W, W) if rank_one else spd()), jnp.float32)
    if name == "newton_schulz_inverse" and (rank_one or size < 1):
        pytest.skip("promised for invertible matrices, whose inverse is a float")
    assert np.isfinite(jax.jit(ALL[name])(x)).all()
