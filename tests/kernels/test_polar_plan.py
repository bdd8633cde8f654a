"""The forms of newton_schulz: one function, the promised cost, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

TABLES = ("jordan", "youjiacheng", "polar_express", "turbo", "accurate")
FORMS = ("standard", "gram")
WIDE = (32, 128)

over_tables = pytest.mark.parametrize("table", TABLES)


def spectrum(shape, s, seed=0):
    """A matrix with given singular values, in float64."""
    rng, k = np.random.default_rng(seed), min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(size, k)))[0] for size in shape)
    return (u * s) @ v.T


@functools.cache
def hard(shape):
    """Matrices that are hard for some form, in a stack."""
    rng, k = np.random.default_rng(1), min(shape)
    i = np.arange(1.0, k + 1)
    huge = 1e-3 * rng.normal(size=shape)
    huge[3, 5] = 1e3
    column, row = rng.normal(size=(shape[0], 1)), rng.normal(size=shape[1])
    return np.stack(
        [
            rng.normal(size=shape),
            spectrum(shape, 1 / i),
            spectrum(shape, 1 / i**2),
            spectrum(shape, np.geomspace(1, 1e-3, k)),
            spectrum(shape, np.geomspace(1, 1e-5, k)),
            spectrum(shape, 1.0 * (i <= k // 8)),
            column * row + 1e-3 * rng.normal(size=shape),
            column * row,
            np.zeros(shape),
            huge,
        ]
    )


def image(s, row):
    return np.polynomial.Polynomial(row)(s * s) * s


def errors(x, y):
    """Largest |s - 1| of y along the directions of x with s >= 1e-3 of the top one."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    along = np.einsum("bki,bkl,bil->bi", u, np.asarray(y, np.float64), vt)
    return np.abs(along - 1)[(s >= 1e-3 * s[:, :1]) & (s > 0)].max()


def largest(y):
    return np.linalg.norm(np.asarray(y, np.float64), ord=2, axis=(-2, -1)).max()


@over_tables
@pytest.mark.parametrize("shape", [(64, 256), (24, 8)])
def test_the_forms_are_one_function_in_float64(table, shape):
    x = spectrum(shape, np.geomspace(1, 1e-5, min(shape)))
    with jax.enable_x64(True):
        standard, gram, blocks = (
            kernels.newton_schulz(jnp.asarray(x), table, form=form, symmetric=levels)
            for form, levels in (("standard", 0), ("gram", 0), ("gram", 2))
        )
    # Roundings of 2e-16 grow with the condition, 1e5, and with the slope at zero.
    assert np.abs(standard - gram).max() < 4e-9
    assert np.abs(standard - blocks).max() < 4e-9


@over_tables
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("prescale", "p"), [("frobenius", 2), ("schatten8", 8)])
def test_singular_values_go_through_the_table(table, form, prescale, p):
    x = spectrum((6, 15), np.geomspace(1, 0.02, 6))
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    chosen = kernels.polar_table(table)
    s = s / (chosen.norm_factor * np.sum(s**p) ** (1 / p))
    for row in chosen.rows:
        s = image(s, row)
    for scale in (1, 1e30, 1e-30):
        with jax.enable_x64(True):
            got = kernels.newton_schulz(
                jnp.asarray(scale * x), table, form=form, prescale=prescale
            )
        # Float64 rounding times the slope at zero, twice in the Gram form.
        np.testing.assert_allclose(got, (u * s) @ vt, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(7, 15), (2, 9, 5), (1, 1)])
def test_blocks_of_any_size_give_the_plain_product(form, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    plain, one, three = (
        kernels.newton_schulz(x, steps=2, form=form, symmetric=levels)
        for levels in (0, 1, 3)
    )
    np.testing.assert_allclose(one, plain, atol=12 * 2e-7)
    np.testing.assert_allclose(three, plain, atol=12 * 2e-7)


@over_tables
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nothing_allowed_ends_above_one_point_three(table, form, dtype):
    for shape in (WIDE, (32, 32)):
        x = hard(shape)
        # Directions of zero length hold noise, so they are bounded, not compared.
        y = kernels.newton_schulz(
            jnp.asarray(x, jnp.float32), table, form=form, compute_dtype=dtype
        )
        assert np.isfinite(y).all()
        assert largest(y) <= 1.3
        np.testing.assert_array_equal(y[8], 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 0.15), ("bfloat16", 0.22), ("float16", 0.22)]
)
def test_accurate_keeps_its_word_where_jordan_is_far(form, dtype, bound):
    for shape in (WIDE, (32, 32)):
        x = jnp.asarray(hard(shape), jnp.float32)
        run = functools.partial(kernels.newton_schulz, compute_dtype=dtype, form=form)
        assert errors(np.asarray(x, np.float64), run(x, "accurate")) <= bound
        assert errors(np.asarray(x, np.float64), run(x, "jordan")) > 0.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(16, 4), (4, 16), (2, 16, 4)])
def test_a_compiled_half_precision_product_may_be_transposed(form, shape):
    run = functools.partial(
        kernels.newton_schulz, compute_dtype="bfloat16", form=form, steps=2
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    there = jax.jit(lambda x: run(x.mT).mT)(x)
    np.testing.assert_allclose(there, run(x), atol=0.05)
    back = jax.jit(lambda x: run(x).mT)(x)
    np.testing.assert_allclose(back.mT, run(x), atol=0.05)


def test_half_precision_gram_without_its_restarts_would_run_away():
    # What the restarts are there for: the table's own rows, run as one stretch each.
    x = jnp.asarray(hard(WIDE), jnp.float32)
    plan = kernels.polar_plan(WIDE, "accurate", form="gram", compute_dtype="bfloat16")
    assert plan.restarts == (1, 2)
    safe = kernels.newton_schulz(x, "accurate", compute_dtype="bfloat16", form="gram")
    rows = kernels.polar_table("accurate").rows
    half = x.astype(jnp.bfloat16).astype(jnp.float32)
    norm = jnp.linalg.norm(half, axis=(1, 2), keepdims=True)
    half = half / jnp.where(norm == 0, 1, norm)
    g = jnp.einsum("bik,bjk->bij", half, half)
    q = jnp.eye(WIDE[0])
    for row in rows:
        factor = sum(c * jnp.linalg.matrix_power(g, i) for i, c in enumerate(row))
        q, g = q @ factor, g @ factor @ factor
    rounded = q.astype(jnp.bfloat16).astype(jnp.float32)
    assert largest(safe) < 1.2 < 1.3 < largest(rounded @ half)


@pytest.mark.parametrize(
    ("table", "products", "bound"),
    [
        *((table, None, 1.15) for table in TABLES[1:]),
        *((table, "bfloat16", 1.15) for table in ("youjiacheng", "turbo", "accurate")),
        # Its own band ends at 1.141, and Q is rounded before it meets X.
        ("polar_express", "bfloat16", 1.18),
    ],
)
def test_half_precision_gram_keeps_its_norm_on_the_hard_spectra(table, products, bound):
    """X in bfloat16, squares in float32: condition 1e5, and rank 8 of 64."""
    x = np.stack(
        [
            spectrum((64, 256), s, seed)
            for s in (np.geomspace(1, 1e-5, 64), 1.0 * (np.arange(64) < 8))
            for seed in range(2)
        ]
    )
    kernel = functools.partial(
        kernels.newton_schulz,
        coefficients=table,
        form="gram",
        compute_dtype=products,
        square_dtype="float32",
    )
    y = jax.jit(kernel)(jnp.asarray(x, jnp.bfloat16))
    assert 0.9 < largest(y) <= bound


@pytest.mark.parametrize(
    ("table", "form", "dtype", "square", "said"),
    [
        *(
            (t, "gram", "bfloat16", "bfloat16", "may move a singular value by")
            for t in TABLES[1:]
        ),
        ("polar_express", "gram", "float16", "float16", r"by 0\.023, it stands 0\.02"),
        ("accurate", "standard", "bfloat16", "bfloat16", "in the standard form"),
        ("accurate", "auto", "float32", "float16", "Use square_dtype='float32'"),
    ],
)
def test_unsafe_combinations_are_refused(table, form, dtype, square, said):
    with pytest.raises(ValueError, match=said):
        kernels.newton_schulz(
            jnp.eye(4),
            table,
            form=form,
            compute_dtype=dtype,
            square_dtype=square,
        )


def test_operands_too_coarse_for_every_restart_are_refused():
    with pytest.raises(ValueError, match=r"with any restarts\. Use form='standard'"):
        kernels.polar_plan(
            (4, 8),
            [(60.0, 0.0, 0.0), (1 / 60, 0.0, 0.0)],
            form="gram",
            compute_dtype="bfloat16",
            square_dtype="float32",
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": "grams"}, "form 'grams' is not 'auto' or in"),
        ({"symmetric": -1}, "symmetric counts levels of blocks, got -1"),
        ({"symmetric": 0.5}, r"got 0\.5"),
        ({"prescale": "l1"}, "prescale 'l1' is not in"),
        ({"compute_dtype": "int8"}, "operands in .*'bfloat16'.*got int8"),
        ({"square_dtype": "float8_e4m3fn"}, "got float8_e4m3fn"),
    ],
)
def test_unknown_wishes_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        kernels.newton_schulz(jnp.eye(4), **changes)


def test_restarts_are_as_few_as_the_dtypes_allow():
    def restarts(table, operand, square):
        return kernels.polar_plan(
            WIDE, table, form="gram", compute_dtype=operand, square_dtype=square
        ).restarts

    for table in TABLES:
        assert restarts(table, "float32", "float32") == ()
        assert len(restarts(table, "float16", "float32")) <= 1
    assert restarts("accurate", "bfloat16", "float32") == (1, 2)
    for table in ("youjiacheng", "polar_express", "turbo"):
        assert restarts(table, "bfloat16", "float32") == (2,)
    # Jordan's coefficients bear coarse squares, and a late restart repairs more.
    assert restarts("jordan", "bfloat16", "bfloat16") == (3,)


# The price


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("table", "symmetric"), [("jordan", 0), ("jordan", 1), ("accurate", 0)]
)
def test_the_plan_tells_the_flops_of_the_compiled_program(form, symmetric, table):
    shape = (128, 512)
    plan = kernels.polar_plan(shape, table, form=form, symmetric=symmetric)
    run = functools.partial(
        kernels.newton_schulz, coefficients=table, form=form, symmetric=symmetric
    )
    compiled = jax.jit(run).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    # Sums and scalings beside the products of 2 x 128 FLOPs an entry; the compiler
    # repeats those of a block where it joins blocks.
    bound = 1.12 if symmetric else 1.03
    assert 1 < (compiled.cost_analysis() or {})["flops"] / plan.flops < bound


def test_the_cost_is_the_published_formula():
    for m, n in ((64, 64), (64, 96), (64, 192), (64, 256), (256, 64)):
        m3, r = min(m, n) ** 3, max(m, n) / min(m, n)
        of = functools.partial(kernels.polar_plan, (m, n), platform="cpu")
        assert of(form="standard").flops == pytest.approx((20 * r + 10) * m3)
        assert of(form="gram").flops == pytest.approx((4 * r + 34) * m3)
        # One restart: 8 r + 28; bfloat16 operands with X only.
        restarted = of(form="gram", compute_dtype="bfloat16", square_dtype="float32")
        assert restarted.flops == pytest.approx((8 * r + 28) * m3)
        assert restarted.time == pytest.approx((4 * r + 28) * m3)


def test_turbo_saves_a_fifth_of_the_flops():
    # 16 m^2 n + 8 m^3 in four steps; the row scaling's Gram matrix is the first one.
    plan = kernels.polar_plan((64, 192), "turbo", form="standard")
    assert plan.flops == pytest.approx((16 * 3 + 8) * 64**3)


def test_accurate_costs_no_more_than_five_jordan_steps():
    optax = functools.partial(kernels.polar_plan, form="standard")
    for shape, plain, blocks in (((64, 256), 0.56, 0.45), ((64, 64), 1.0, 0.84)):
        for symmetric, share in ((0, plain), (1, blocks)):
            plan = kernels.polar_plan(shape, "accurate", symmetric=symmetric)
            assert plan.flops <= share * optax(shape).flops


@over_tables
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "neuron"])
def test_the_choice_is_the_fastest_of_what_is_allowed(table, platform):
    for n, dtype in itertools.product((64, 96, 112, 256, 4096), (None, "bfloat16")):
        of = functools.partial(
            kernels.polar_plan, (64, n), table, compute_dtype=dtype, platform=platform
        )
        chosen, apart = of(), [of(form=form) for form in FORMS]
        assert chosen.time == min(plan.time for plan in apart)
        if dtype is None and n > 112:
            assert chosen.form == "gram"
        if n == 64:
            assert chosen.form == "standard"


def test_what_is_planned_is_what_runs():
    x = jnp.zeros((64, 256), jnp.float32)

    def operands(**settings):
        run = functools.partial(kernels.newton_schulz, **settings)
        text = jax.jit(run).lower(x).as_text()
        dots = [line for line in text.splitlines() if "dot_general" in line]
        return len(dots), sum("bf16>, tensor" in line for line in dots)

    assert operands() == (19, 0)
    assert operands(form="standard") == (15, 0)
    # X in bfloat16: to and from Q before and after one restart, the rest in float32.
    mixed = {"compute_dtype": "bfloat16", "square_dtype": "float32"}
    assert operands(form="gram", **mixed) == (18, 4)
    assert operands(form="standard", **mixed) == (15, 10)


# Stacks


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 4, 12), (2, 2, 12, 4)])
def test_a_loop_gives_what_the_stack_gives(form, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    eps = jnp.asarray(np.random.default_rng(1).uniform(size=(*shape[:-2], 1, 1)))
    for value in (0.0, eps.astype(jnp.float32)):
        loop, stack = (
            kernels.newton_schulz(x, form=form, batching=batching, eps=value)
            for batching in ("loop", "stack")
        )
        assert loop.dtype == x.dtype
        np.testing.assert_allclose(loop, stack, atol=485 * 2e-7)


def test_a_loop_differentiates_and_keeps_the_dtype():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 6)), jnp.float32)
    loop, stack = (
        jax.grad(lambda x, b=b: kernels.newton_schulz(x, steps=1, batching=b)[0].sum())(
            x
        )
        for b in ("loop", "stack")
    )
    np.testing.assert_allclose(loop, stack, atol=1e-5)
    half = kernels.newton_schulz(x.astype(jnp.bfloat16), batching="loop")
    assert half.dtype == jnp.bfloat16


def test_a_loop_works_in_the_memory_of_its_stack():
    x = jax.ShapeDtypeStruct((8, 32, 128), jnp.float32)

    def memory(batching):
        run = functools.partial(kernels.newton_schulz, batching=batching)
        compiled = jax.jit(run, donate_argnums=0).lower(x).compile()
        used = compiled.memory_analysis()
        assert used is not None
        return used.temp_size_in_bytes / (4 * x.size)

    assert memory("loop") < 0.6 < 1 < memory("stack")


def test_an_unknown_batching_is_refused():
    with pytest.raises(ValueError, match="batching 'map' is not in"):
        kernels.newton_schulz(jnp.ones((2, 3, 3)), batching="map")


# Rows of degree nine


def test_every_step_of_degree_nine_is_a_minimax_polynomial():
    low, (row,) = 0.1, kernels.minimax_rows(0.1, (9,), safety=1, cushion=0)
    s = np.linspace(low, 1, 100_001)
    error = image(s, row) - 1
    turns = error[1:-1][np.diff(np.sign(np.diff(error))) != 0]
    ripple = np.concatenate([error[:1], turns, error[-1:]])
    signs = np.array([-1, 1, -1, 1, -1, 1])
    np.testing.assert_allclose(ripple, np.abs(error).max() * signs, rtol=1e-5)


def test_mixed_degrees_reach_further_down_for_the_same_products():
    def error(degrees):
        s = np.geomspace(1e-3, 1, 20_001)
        for row in kernels.minimax_rows(1e-3, degrees, safety=1):
            s = image(s, row)
        return np.abs(s - 1).max()

    assert error((5,) * 5) == pytest.approx(0.121, abs=1e-3)
    assert error((9, 9, 9, 5)) == pytest.approx(0.0696, abs=1e-3)
    assert error((9,) * 4) == pytest.approx(0.0122, abs=1e-3)
    five, mixed = (
        kernels.polar_plan((64, 64), kernels.minimax_rows(1e-3, degrees)).flops
        for degrees in ((5,) * 5, (9, 9, 9, 5))
    )
    assert five == mixed


def test_rows_of_degree_nine_end_in_the_series_of_the_square_root():
    rows = kernels.minimax_rows(1e-3, (9,) * 8, safety=1)
    series = np.array([315, -420, 378, -180, 35]) / 128
    np.testing.assert_allclose(rows[-1], series, rtol=1e-12)


@pytest.mark.parametrize("safety", [1, 1.02])
def test_rows_of_degree_nine_are_finite_over_the_range_of_arguments(safety):
    for lower, cushion in itertools.product((0.9, 0.1, 1e-3, 1e-6), (0, 0.02, 0.5)):
        rows = kernels.minimax_rows(lower, (9,) * 6, safety=safety, cushion=cushion)
        assert np.isfinite(rows).all()


def test_other_degrees_are_refused():
    with pytest.raises(ValueError, match=r"degrees must be 5 or 9, got \(7,\)"):
        kernels.minimax_rows(1e-3, (7,))
    with pytest.raises(ValueError, match=r"got \(\)"):
        kernels.minimax_rows(1e-3, ())
