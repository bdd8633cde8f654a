"""newton_schulz against the published iteration, its identities and hostile inputs."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

TABLES = ("jordan", "youjiacheng", "polar_express")
PRESCALES = ("frobenius", "schatten", "aol")
IDENTITY = [(1.0, 0.0, 0.0)]  # one step that changes nothing: shows the prescale

over_tables = pytest.mark.parametrize("table", TABLES)
over_prescales = pytest.mark.parametrize("prescale", PRESCALES)


def run(x, table="jordan", *, prescale="frobenius", dtype=None, eps=0.0):
    # Not compiled as a whole: the tests share few shapes, so operations are compiled
    # once for all of them.
    return kernels.newton_schulz(
        x, table, prescale=prescale, compute_dtype=dtype, eps=eps
    )


compiled = jax.jit(run, static_argnames=("table", "prescale", "dtype"))


def published(x, table="jordan", prescale="frobenius", eps=0.0):
    """One matrix in float64, as in the papers: no scaling by the largest entry."""
    table, x = kernels.polar_table(table), np.asarray(x).astype(np.float64)
    if x.shape[0] > x.shape[1]:
        return published(x.T, table, prescale, eps).T
    if prescale == "frobenius":
        norm = np.linalg.norm(x)
    elif prescale == "schatten":
        norm = np.sum(np.linalg.svd(x, compute_uv=False) ** 4) ** 0.25
    else:
        norm = np.sqrt(np.abs(x @ x.T).sum(axis=1, keepdims=True))
    x = x / (table.norm_factor * norm + eps)
    for a, b, c in table.rows:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def matrix(m, n, seed=0, low=0.3):
    """A matrix whose singular values lie in [low, 1]."""
    rng, k = np.random.default_rng(seed), min(m, n)
    u = np.linalg.qr(rng.normal(size=(m, k)))[0]
    v = np.linalg.qr(rng.normal(size=(n, k)))[0]
    return (u * np.linspace(low, 1, k)) @ v.T


def gap(got, want):
    return float(np.max(np.abs(np.asarray(got).astype(np.float64) - want)))


def bound(dtype, table="jordan", c=0.2):
    """Tolerance c times condition times eps; condition: the slope at zero."""
    slope = math.prod(row[0] for row in kernels.polar_table(table).rows)
    return c * slope * float(jnp.finfo(dtype).eps)


@over_tables
@over_prescales
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_published_iteration(table, prescale, dtype):
    with jax.enable_x64(dtype == "float64"):
        for shape in ((4, 6), (6, 4)):
            x = jnp.asarray(matrix(*shape), dtype)
            got = run(x, table, prescale=prescale)
            assert got.dtype == x.dtype
            want = published(x, table, prescale)
            assert gap(got, want) < bound(dtype, table)


@over_tables
@over_prescales
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_input_is_rounded_once_at_the_end(table, prescale, dtype):
    x = jnp.asarray(matrix(4, 6), dtype)
    got = run(x, table, prescale=prescale)
    assert got.dtype == x.dtype
    # Entries are below 1: half a unit in the last place, and float32's own error.
    once = 0.5 * float(jnp.finfo(dtype).eps) + bound("float32", table)
    assert gap(got, published(x, table, prescale)) < once


@over_tables
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_products_cost_a_few_rounding_errors(table, dtype):
    x = jnp.asarray(matrix(4, 6), jnp.float32)
    got = run(x, table, dtype=dtype)
    assert got.dtype == jnp.float32
    difference = gap(got, published(x, table))
    assert bound(dtype, table, c=1e-4) < difference < bound(dtype, table, c=0.02)


def test_products_take_compute_dtype_and_accumulate_in_float32():
    x = jnp.zeros((4, 6), jnp.float32)
    text = compiled.lower(x, dtype="bfloat16").as_text()
    dots = re.findall(r"stablehlo\.dot_general.*-> tensor<[^>]*>", text)
    assert len(dots) == 15
    assert all("bf16>, tensor" in dot and dot.endswith("f32>") for dot in dots)
    # Without this a TPU would round float32 operands to bfloat16.
    assert all("precision = [HIGHEST, HIGHEST]" in dot for dot in dots)


@over_tables
def test_acts_on_singular_values_alone(table):
    x = matrix(4, 6, low=0.05)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    chosen = kernels.polar_table(table)
    s = s / (chosen.norm_factor * np.linalg.norm(s))
    for a, b, c in chosen.rows:
        s = a * s + b * s**3 + c * s**5
    with jax.enable_x64(True):
        got = run(jnp.asarray(x), table)
    assert gap(got, (u * s) @ vt) < bound("float64", table)


PUBLISHED = [
    ("jordan", np.diag([3.0, 4.0]), np.diag([0.722876, 1.119204])),
    ("jordan", np.ones((4, 4)), np.full((4, 4), 0.174109)),
    ("polar_express", np.diag([3.0, 4.0]), np.diag([0.946788, 0.878287])),
    (
        "polar_express",
        np.outer([0.6, 0.8], [0.8, 0.0, 0.6]),
        0.9035374 * np.outer([0.6, 0.8], [0.8, 0.0, 0.6]),
    ),
]


@pytest.mark.parametrize(("table", "x", "want"), PUBLISHED)
def test_gives_the_published_values(table, x, want):
    with jax.enable_x64(True):
        assert gap(run(jnp.asarray(x), table), want) < 1e-6


def test_aol_scales_rows_as_published():
    scale = functools.partial(kernels.newton_schulz, prescale="aol")
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert gap(scale(x, IDENTITY), [[1 / 4, 1 / 2], [1 / 2, 2 / 3]]) < 1e-6
    diagonal = scale(jnp.diag(jnp.array([3.0, 4.0])), IDENTITY)
    assert gap(diagonal, np.eye(2)) < 1e-6


@over_prescales
def test_prescaling_brings_the_spectral_norm_to_at_most_one(prescale):
    rng = np.random.default_rng(0)
    hostile = [
        rng.normal(size=(6, 9)),
        np.ones((6, 9)),
        np.outer(rng.normal(size=6), rng.normal(size=9)),
        np.diag([1e-3, 1, 1e3, 1, 1, 1]) @ rng.normal(size=(6, 9)),
    ]
    x = jnp.asarray(np.stack([*hostile]), jnp.float32)
    norms = [
        np.linalg.norm(y, 2)
        for stack in (x, x.mT)
        for y in kernels.newton_schulz(stack, IDENTITY, prescale=prescale)
    ]
    assert max(norms) <= 1 + 1e-6
    assert max(norms) > 0.5


@over_tables
@pytest.mark.parametrize("shape", [(8, 8), (6, 20)])
def test_singular_values_end_within_the_promised_band(table, shape):
    promise = kernels.polar_table(table)
    low, high = promise.band
    # Frobenius puts the smallest at low / sqrt(sum of squares) >= 0.02 / sqrt(8).
    x = np.stack([matrix(*shape, seed=seed, low=0.03) for seed in range(8)])
    s = np.linalg.norm(x[0]) * promise.norm_factor
    assert 0.03 / s > promise.interval[0]
    values = np.linalg.svd(run(jnp.asarray(x, jnp.float32), table), compute_uv=False)
    slack = bound("float32", table)
    assert low - slack < values.min() < 1 < values.max() < high + slack


@over_tables
@over_prescales
def test_a_batch_equals_a_loop(table, prescale):
    x = np.stack([matrix(4, 6, seed=seed) for seed in range(6)]).reshape(3, 2, 4, 6)
    x = jnp.asarray(x, jnp.float32)
    batch = run(x, table, prescale=prescale)
    mapped = jax.vmap(lambda y: run(y, table, prescale=prescale))(x)
    for i, j in np.ndindex(3, 2):
        alone = run(x[i, j], table, prescale=prescale)
        assert gap(batch[i, j], alone) < bound("float32", table)
        assert gap(mapped[i, j], alone) < bound("float32", table)


@over_prescales
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_a_batch_of_one_is_the_plain_path_bit_for_bit(prescale, shape):
    x = jnp.asarray(matrix(*shape), jnp.float32)
    plain = run(x, prescale=prescale)
    for lead in ((1,), (1, 1)):
        np.testing.assert_array_equal(
            run(x.reshape(lead + shape), prescale=prescale).reshape(shape), plain
        )


@over_tables
@over_prescales
def test_transposing_commutes(table, prescale):
    x = jnp.asarray(matrix(4, 6), jnp.float32)
    got = run(x.T, table, prescale=prescale)
    assert gap(got, run(x, table, prescale=prescale).T) < bound("float32", table)


@over_prescales
def test_rotations_commute_except_with_aol(prescale):
    x = matrix(4, 6, low=0.05)
    left, right = (
        np.linalg.qr(np.random.default_rng(7).normal(size=(k, k)))[0] for k in (4, 6)
    )
    one = run(jnp.asarray(left @ x @ right, jnp.float32), prescale=prescale)
    two = left @ np.asarray(run(jnp.asarray(x, jnp.float32), prescale=prescale)) @ right
    if prescale == "aol":
        assert gap(one, two) > 1e-2
    else:
        assert gap(one, two) < bound("float32")


@over_prescales
def test_signed_permutations_commute_with_every_prescale(prescale):
    rng = np.random.default_rng(3)
    x = matrix(4, 6)
    left, right = (
        np.eye(k)[rng.permutation(k)] * rng.choice([-1, 1], size=k) for k in (4, 6)
    )
    one = run(jnp.asarray(left @ x @ right, jnp.float32), prescale=prescale)
    two = left @ np.asarray(run(jnp.asarray(x, jnp.float32), prescale=prescale)) @ right
    assert gap(one, two) < bound("float32")


@over_prescales
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(4, 6), (3, 6, 4)])
def test_zero_stays_exactly_zero(prescale, dtype, shape):
    got = run(jnp.zeros(shape, dtype), prescale=prescale)
    np.testing.assert_array_equal(got.astype(jnp.float32), np.zeros(shape))


@over_prescales
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_a_power_of_two_on_the_input_changes_no_bit(prescale, scale):
    x = jnp.asarray(matrix(4, 6), jnp.float32)
    np.testing.assert_array_equal(
        run(scale * x, prescale=prescale), run(x, prescale=prescale)
    )


@over_prescales
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float32", 1e-30),
        ("float32", 1e30),
        ("bfloat16", 1e-30),
        ("bfloat16", 1e38),
        ("float16", 1e-4),
        ("float16", 6e4),
    ],
)
def test_tiny_and_huge_matrices_give_what_ordinary_ones_give(prescale, dtype, scale):
    x = jnp.asarray(scale * matrix(4, 6), dtype)
    want = published(np.asarray(x).astype(np.float64) / scale, prescale=prescale)
    once = 0.5 * float(jnp.finfo(dtype).eps) + bound("float32")
    assert gap(run(x, prescale=prescale), want) < once


@over_prescales
def test_one_nonfinite_entry_spoils_its_own_matrix_only(prescale):
    x = np.stack([matrix(4, 6, seed=seed) for seed in range(3)]).astype(np.float32)
    clean = run(jnp.asarray(x), prescale=prescale)
    x[0, 2, 3], x[1, 0, 0] = np.nan, np.inf
    got = run(jnp.asarray(x), prescale=prescale)
    assert np.isnan(got[:2]).all()
    np.testing.assert_array_equal(got[2], clean[2])


@over_prescales
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 4, 5), (2, 0, 3), (1, 3, 0)])
def test_an_empty_array_is_returned_as_it_came(prescale, shape):
    got = run(jnp.zeros(shape, jnp.bfloat16), prescale=prescale)
    assert (got.shape, got.dtype) == (shape, jnp.bfloat16)


@over_tables
def test_rank_one_keeps_its_two_directions(table):
    u, v = np.array([0.6, 0, -0.8, 0]), np.array([2.0, 0, -1, 0, 0, 2]) / 3
    got = np.asarray(run(jnp.asarray(7 * np.outer(u, v), jnp.float32), table))
    gain = u @ got @ v
    assert 0.6 < gain < 1.2
    # The null space holds rounding noise times the slope at zero.
    assert gap(got, gain * np.outer(u, v)) < bound("float32", table, c=2)


@over_tables
@over_prescales
def test_rank_one_in_bfloat16_never_blows_up(table, prescale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 32, 1)) * rng.normal(size=(1000, 1, 48))
    got = run(jnp.asarray(x, jnp.bfloat16), table, prescale=prescale, dtype="bfloat16")
    norms = np.linalg.norm(np.asarray(got, np.float32), ord=2, axis=(-2, -1))
    assert 0.5 < norms.min() <= norms.max() < 1.2


def test_eps_is_in_units_of_the_input_and_shrinks_tiny_matrices():
    x = matrix(4, 6)
    for scale in (1e-3, 1e-7, 1e-9, 1e-30):
        tiny = jnp.asarray(scale * x, jnp.float32)
        want = published(tiny, eps=1e-7)
        assert gap(run(tiny, eps=1e-7), want) < bound("float32")
    assert np.abs(want).max() < 1e-19


def test_one_triple_runs_five_steps_and_a_list_of_one_runs_one():
    triple = (3.4445, -4.7750, 2.0315)
    assert kernels.polar_table(triple).rows == kernels.polar_table("jordan").rows
    assert len(kernels.polar_table(triple, steps=3).rows) == 3
    assert len(kernels.polar_table([triple]).rows) == 1
    assert len(kernels.polar_table(kernels.polar_express_rows(steps=2)).rows) == 2


@pytest.mark.parametrize(
    ("coefficients", "steps", "said"),
    [
        ("jorden", None, "known: accurate, jordan, polar_express, turbo, you"),
        ("polar_express", 4, r"polar_express_rows\(steps=4\)"),
        ("youjiacheng", 6, "5 steps of its own, got steps=6"),
        ("jordan", 0, "got steps=0"),
        ((1.0, 2.0), None, "finite triple"),
        ((1.0, float("nan"), 0.0), None, "finite triple"),
        ([[[1.0, 0.0, 0.0]]], None, "finite triple"),
        ([(9.0, 0.0, 0.0)] * 3, None, "stays bounded only up to"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(coefficients, steps, said):
    with pytest.raises(ValueError, match=said):
        kernels.newton_schulz(jnp.eye(2), coefficients, steps=steps)


def test_inputs_that_are_no_matrices_are_refused():
    with pytest.raises(ValueError, match=r"two or more axes, got shape \(3,\)"):
        kernels.newton_schulz(jnp.ones(3))
    with pytest.raises(TypeError, match="floating dtype, got int32"):
        kernels.newton_schulz(jnp.ones((3, 3), jnp.int32))
    with pytest.raises(ValueError, match="prescale 'l1' is not in"):
        kernels.newton_schulz(jnp.eye(3), prescale="l1")


@over_prescales
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_a_step_costs_three_products_and_a_single_matrix_no_batch(prescale, shape):
    single = compiled.lower(jnp.zeros((1, *shape)), prescale=prescale)
    stack = compiled.lower(jnp.zeros((3, *shape)), prescale=prescale)
    assert single.as_text().count("stablehlo.dot_general") == 15
    assert "batching_dims" not in single.as_text()
    assert "batching_dims" in stack.as_text()
    # The compiler removes none either: what is counted is what is run.
    assert len(re.findall(r"= \S+ dot\(", single.compile().as_text())) == 15


def test_the_gradient_passes_through():
    x = jnp.asarray(matrix(4, 6), jnp.float32)
    slope = jax.grad(lambda y: run(y).sum())(x)
    step = 1e-3 * np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    rise = run(x + step).sum() - run(x - step).sum()
    assert abs(rise - 2 * np.vdot(slope, step)) < 0.02 * abs(rise) + 1e-5


@pytest.mark.parametrize(
    ("shape", "table", "steps", "errors"),
    [
        ((256, 256), "jordan", 3, (0.338, 0.249, 0.229)),
        ((256, 256), "jordan", 5, (0.210, 0.196, 0.187)),
        ((256, 256), "youjiacheng", None, (0.096,)),
        ((256, 1024), "youjiacheng", None, (0.017,)),
    ],
)
def test_gaussian_matrices_end_as_near_to_the_polar_factor_as_measured(
    shape, table, steps, errors
):
    x = np.random.default_rng(0).normal(size=shape)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    for prescale, want in zip(("frobenius", "schatten", "aol"), errors, strict=False):
        kernel = functools.partial(
            kernels.newton_schulz, coefficients=table, steps=steps, prescale=prescale
        )
        got = jax.jit(kernel)(jnp.asarray(x, jnp.float32))
        error = np.linalg.norm(got - u @ vt) / np.linalg.norm(u @ vt)
        # Another matrix than theirs: the few smallest singular values differ.
        assert abs(error - want) < 0.012


def test_a_tiny_gradient_takes_a_nearly_full_step_unless_eps_is_large():
    x = np.random.default_rng(0).normal(size=(8, 16))
    sizes = [
        np.linalg.norm(kernels.newton_schulz(jnp.asarray(c * x, "float32"), eps=1e-7))
        for c in (1e-10, 1e-12)
    ]
    np.testing.assert_allclose(sizes, [3.0, 0.05], rtol=0.2)
