"""Shapes: from 1 to 0, the identities between published schedules, accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.schedules import shapes

# Numbers u in [0, 1] that float32 holds exactly, so float64 sees the same ones.
U = np.linspace(0, 1, 257)
POWERS = (0.5, 1.0, 1.5, 3.0)
ORDERS = (1.0001, 1.1, 1.5, 2.0, 7.0, 10.0, 100.0, 0.5, 0.1)
SHAPES = {
    "linear": (shapes.linear, lambda u: u),
    "cosine": (shapes.cosine, lambda u: (1 - np.cos(np.pi * u)) / 2),
    "one_minus_sqrt": (shapes.one_minus_sqrt, lambda u: 1 - np.sqrt(1 - u)),
    "rex": (shapes.moebius(0.5), lambda u: u / (0.5 + u / 2)),
    "uba": (shapes.moebius(2.5, shapes.cosine), None),
    **{
        f"exponential {b}": (
            shapes.exponential(b),
            lambda u, b=b: np.expm1(u * np.log(b)) / (b - 1),
        )
        for b in ORDERS
    },
    "cosine power": (shapes.exponential(10.0, shapes.cosine), None),
    **{f"power {q}": (shapes.power(q), lambda u, q=q: u**q) for q in POWERS},
    **{
        f"inverse_sqrt {a}": (
            shapes.inverse_sqrt(a),
            lambda u, a=a: (
                ((1 + a) ** -0.5 - (1 + a * (1 - u)) ** -0.5) / ((1 + a) ** -0.5 - 1)
            ),
        )
        for a in (0.5, 10.0, 999.0)
    },
    "geometric": (shapes.geometric.shape(8.0), lambda u: (8**u - 1) / 7),
    "harmonic": (shapes.harmonic.shape(8.0), lambda u: u / (u + 8 * (1 - u))),
}
over_shapes = pytest.mark.parametrize("name", SHAPES)


def at(shape, u=U):
    return np.asarray(shape(jnp.asarray(u, jnp.float32)))


@over_shapes
def test_starts_at_exactly_one_and_ends_at_exactly_nothing(name):
    shape, _ = SHAPES[name]
    for run in (shape, jax.jit(shape)):
        assert run(jnp.float32(1.0)) == 1
        assert run(jnp.float32(0.0)) == 0


@over_shapes
def test_falls_steadily_between(name):
    values = at(SHAPES[name][0])
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name][1]])
def test_equals_the_formula(name):
    shape, formula = SHAPES[name]
    np.testing.assert_allclose(at(shape), formula(U), rtol=2e-6, atol=1e-12)


@over_shapes
def test_keeps_its_relative_accuracy_near_the_end(name):
    u = np.float32(2.0) ** -np.arange(8, 40, 4)
    with jax.enable_x64(True):
        want = np.asarray(SHAPES[name][0](jnp.asarray(u, jnp.float64)))
    np.testing.assert_allclose(at(SHAPES[name][0], u), want, rtol=2e-6)


def test_the_moebius_map_of_one_changes_nothing():
    # v + (1 - v) may round: one unit in the last place.
    np.testing.assert_allclose(at(shapes.moebius(1.0)), U, rtol=1.2e-7)
    identity = shapes.moebius(1.0, shapes.cosine)
    np.testing.assert_allclose(at(identity), at(shapes.cosine), rtol=1.2e-7)


def test_moebius_maps_compose_by_multiplying():
    twice = shapes.moebius(0.5, shapes.moebius(0.5))
    np.testing.assert_allclose(at(twice), at(shapes.moebius(0.25)), rtol=1e-6)


def test_the_midpoint_of_rex_is_two_thirds_not_the_widely_copied_ten_elevenths():
    np.testing.assert_allclose(shapes.moebius(0.5)(0.5), 2 / 3, rtol=1e-7)
    np.testing.assert_allclose(shapes.moebius(0.1)(0.5), 10 / 11, rtol=1e-7)
    area = np.trapezoid(at(shapes.moebius(0.5)), U)
    np.testing.assert_allclose(area, 2 - 2 * np.log(2), rtol=1e-4)


@pytest.mark.parametrize(
    ("phi", "middle"),
    [(0.25, 8 / 9), (0.5, 4 / 5), (1, 2 / 3), (2, 1 / 2), (5, 2 / 7)],
)
def test_the_unified_schedule_is_the_moebius_map_of_the_cosine(phi, middle):
    shape = shapes.moebius(phi / 2, shapes.cosine)
    np.testing.assert_allclose(shape(0.5), middle, rtol=1e-6)
    # Its published form, with the tangent of half the angle done.
    u = U[1:-1]
    tangent = np.tan(np.pi / 2 * (1 - u))
    np.testing.assert_allclose(at(shape, u), 1 / (1 + phi / 2 * tangent**2), rtol=2e-6)


def test_exponential_maps_compose_with_the_inverse_order():
    mixed = at(shapes.exponential(1 / 9.0))
    np.testing.assert_allclose(mixed, 1 - at(shapes.exponential(9.0))[::-1], atol=1e-6)


def test_an_order_near_one_does_not_lose_its_digits():
    np.testing.assert_allclose(at(shapes.exponential(1 + 1e-6)), U, rtol=2e-6)


@pytest.mark.parametrize(
    "k", [0, -1.0, float("nan"), float("inf"), np.float32(-2), jnp.zeros(())]
)
def test_a_number_that_is_not_positive_is_refused(k):
    with pytest.raises(ValueError, match="k must be positive"):
        shapes.moebius(k)
    with pytest.raises(ValueError, match="b must be positive"):
        shapes.exponential(k)
    with pytest.raises(ValueError, match="q must be positive"):
        shapes.power(k)


@pytest.mark.parametrize("one", [1, 1.0, jnp.float32(1)])
def test_order_one_changes_nothing(one):
    np.testing.assert_array_equal(at(shapes.exponential(one)), np.float32(U))
    traced = jax.jit(lambda b: shapes.exponential(b)(jnp.asarray(U, jnp.float32)))
    np.testing.assert_array_equal(traced(one), np.float32(U))


@pytest.mark.parametrize("order", [0.98, 0.991, 0.9999, 1.0001, 1.009, 1.02])
def test_the_series_near_order_one_meets_the_formula(order):
    with jax.enable_x64(True):
        got = np.asarray(shapes.exponential(order)(jnp.asarray(U)))
    want = np.expm1(U * np.log(order)) / np.expm1(np.log(order))
    np.testing.assert_allclose(got, want, rtol=1e-11)


@pytest.mark.parametrize("make", [shapes.inverse_sqrt, shapes.half_life])
def test_a_timescale_or_half_life_that_is_not_positive_is_refused(make):
    for number in (0, -1.0, float("nan"), jnp.float32(-2)):
        with pytest.raises(ValueError, match=f"must be positive, got {number}"):
            make(number)


@pytest.mark.parametrize("fraction", [0.2, 0.25, 1.0])
def test_a_half_life_halves_and_ends_above_nothing(fraction):
    u = np.array([1, 1 - fraction / 2, 1 - fraction, 0])
    values = at(shapes.half_life(fraction), u)
    want = [1, 2**-0.5, 0.5, 0.5 ** (1 / fraction)]
    np.testing.assert_allclose(values, want, rtol=1e-6)
    assert values[0] == 1


def test_means_are_weighted_means_of_both_ends():
    start, end = 3.0, 0.5
    for mean, want in (
        (shapes.geometric, np.exp(U * np.log(start) + (1 - U) * np.log(end))),
        (shapes.harmonic, 1 / (U / start + (1 - U) / end)),
    ):
        got = end + (start - end) * at(mean.shape(start / end))
        np.testing.assert_allclose(got, want, rtol=1e-6)


MAPS = (shapes.moebius, shapes.exponential, shapes.power)
MAKERS = (*MAPS, shapes.half_life, shapes.inverse_sqrt)


def test_a_traced_parameter_compiles_once():
    traces = []

    @jax.jit
    def values(k, u):
        traces.append(1)
        return [make(k)(u) for make in MAKERS]

    for k in (0.5, 1.0, 3.0):
        want = [make(k)(0.3) for make in MAKERS]
        np.testing.assert_allclose(values(k, 0.3), want, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("make", MAPS)
@pytest.mark.parametrize("base", [shapes.linear, shapes.cosine])
def test_gradients_in_the_parameter_are_finite_at_both_ends(make, base):
    for k in (0.5, 1.0, 3.0):
        for u in (0.0, 0.5, 1.0):
            slope = jax.grad(lambda k, u=u: make(k, base)(jnp.float32(u)))(k)
            assert np.isfinite(slope)
            assert (slope != 0) == (u == 0.5)


@pytest.mark.parametrize("make", [shapes.half_life, shapes.inverse_sqrt])
def test_gradients_in_a_timescale_or_half_life_are_finite(make):
    for u in (0.0, 0.5, 1.0):
        assert np.isfinite(jax.grad(lambda k, u=u: make(k)(jnp.float32(u)))(3.0))


@over_shapes
def test_gradients_in_the_fraction_are_finite_at_both_ends(name):
    slope = jax.vmap(jax.grad(SHAPES[name][0]))(jnp.asarray(U, jnp.float32))
    assert np.isfinite(slope).all()
    assert (slope[1:-1] > 0).all()


def test_the_gradient_of_the_exponential_map_is_right_about_order_one():
    def exact(v, b):
        # d/db (b^v - 1) / (b - 1), and its limit at 1, in float64.
        if b == 1:
            return v * (v - 1) / 2
        return (v * b ** (v - 1) * (b - 1) - (b**v - 1)) / (b - 1) ** 2

    for b in (0.9, 0.992, 1.0, 1.008, 1.012, 1.1):
        slope = jax.grad(lambda b: shapes.exponential(b)(jnp.float32(0.25)))(b)
        np.testing.assert_allclose(slope, exact(0.25, b), rtol=1e-3)


def test_a_huge_order_does_not_overflow():
    np.testing.assert_allclose(at(shapes.exponential(1e60), 0.5), 1e-30, rtol=1e-5)
    np.testing.assert_allclose(at(shapes.exponential(1e-60), 0.5), 1.0, rtol=1e-6)
