"""Schedules from gradient norms: the closed form, the filter, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules

LAST = 2**31 - 1
TOY = [4.0, 2.0, 1.0, 1.0, 1.0]
GOLDEN = {
    "sgd": [0.1015625, 0.375, 1.0, 0.5, 0.0],
    "adam": [0.4375, 0.75, 1.0, 0.5, 0.0],
}


def rates(norms, total, **changes):
    schedule = schedules.refined(norms, peak=1.0, total_steps=total, **changes)
    return np.asarray(schedule(jnp.arange(total + 1)))


def closed_form(norms, power):
    """Float64, two plain loops."""
    weights = [norm**-power for norm in norms]
    values = [w * sum(weights[t + 1 :]) for t, w in enumerate(weights)]
    return np.array(values) / max(values)


@pytest.mark.parametrize("method", GOLDEN)
def test_equals_the_golden_values_of_the_toy(method):
    np.testing.assert_array_equal(rates(TOY, 4, method=method), GOLDEN[method])


@pytest.mark.parametrize(("method", "power"), [("sgd", 2), ("adam", 1)])
def test_equals_the_closed_form(method, power):
    norms = np.random.default_rng(0).lognormal(size=60)
    got = rates(norms, 59, method=method, smoothing=0.0)
    np.testing.assert_allclose(got, closed_form(norms, power), rtol=1e-6)


@pytest.mark.parametrize("method", GOLDEN)
@pytest.mark.parametrize("norm", [1.0, 3e-20, 7e200])
def test_constant_norms_give_linear_decay(method, norm):
    linear = schedules.linear(1.0, total_steps=37)(jnp.arange(38))
    for many in (38, 5, 1000):  # a run of any length
        got = rates([norm] * many, 37, method=method)
        np.testing.assert_allclose(got, linear, rtol=1e-6)


def test_falling_norms_give_a_warmup_and_the_sharper_the_faster_they_fall():
    t = np.linspace(0, 1, 1001)
    for fall in (2, 20):
        norms = 1 + fall * np.exp(-10 * t)
        got = rates(norms, 1000)
        top = got.argmax()
        assert 50 < top < 600
        assert (np.diff(got[: top + 1]) >= 0).all() and (np.diff(got[top:]) <= 0).all()
    assert got[0] < 0.01


def test_a_median_filter_hides_single_spikes():
    norms = np.ones(1001)
    norms[[3, 100, 500, 998]] = 1e6, 50.0, 1e-3, 1e9
    clean, spiky = rates(np.ones(1001), 1000), rates(norms, 1000)
    np.testing.assert_allclose(spiky, clean, rtol=1e-6)
    assert np.abs(rates(norms, 1000, smoothing=0.0) - clean).max() > 0.5


def test_the_filter_repeats_the_first_norm_and_reflects_the_last_ones():
    # Width 3 of 20 points: 2 floor(0.1 * 20 / 2) + 1. Rising norms show the padding:
    # on the left the median of (G0, G0, G1), on the right of (G18, G19, G18).
    norms = np.arange(1.0, 21.0)
    smooth = norms.copy()
    smooth[-1] = norms[-2]
    np.testing.assert_allclose(rates(norms, 19), closed_form(smooth, 2), rtol=1e-6)


def test_norms_that_say_nothing_are_left_out():
    norms = np.linspace(5.0, 1.0, 41)
    clean = rates(norms, 40, smoothing=0.0)
    norms[[7, 20, 33]] = np.nan, np.inf, 0.0
    got = rates(norms, 40, smoothing=0.0)
    np.testing.assert_allclose(got, clean, rtol=2e-6)
    norms[0] = norms[-1] = np.nan  # the nearest one that is there
    assert np.isfinite(rates(norms, 40)).all()


def test_a_run_of_another_length_has_the_same_shape():
    norms = 1 + 3 * np.exp(-5 * np.linspace(0, 1, 501))
    short, long = rates(norms, 500), rates(norms, 2000)
    np.testing.assert_allclose(long[::4], short, rtol=0.02, atol=1e-3)
    assert long.max() == 1


def test_a_long_run_is_thinned_and_stays_exact_at_its_end():
    total = 1_000_003
    linear = schedules.linear(1.0, total_steps=total)
    rate = schedules.refined(np.ones(777), peak=1.0, total_steps=total)
    left = np.array([0, 1, 2, 10, 99, 100, 101, 12345, total - 1, total])
    steps = jnp.asarray(total - left, jnp.int32)
    np.testing.assert_allclose(rate(steps), linear(steps), rtol=2e-6)
    assert rate(0) == 1 and rate(total) == 0


def test_keeps_the_contract_of_counts():
    schedule = schedules.refined(TOY, peak=2.0, total_steps=4)
    for step in (4, 5, 2**24 + 1, LAST):
        assert schedule(step) == schedule(np.uint32(step)) == 0
    steps = jnp.arange(8)
    np.testing.assert_array_equal(jax.jit(schedule)(steps), schedule(steps))
    np.testing.assert_array_equal(jax.vmap(schedule)(steps), schedule(steps))
    assert schedule(3).dtype == jnp.float32


def test_traced_peaks_compile_once():
    traces = []

    @jax.jit
    def rate(peak, count):
        traces.append(1)
        return schedules.refined(TOY, peak=peak, total_steps=4)(count)

    assert [rate(peak, 2) for peak in (0.5, 3.0)] == [0.5, 3.0]
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("norms", "changes", "error", "said"),
    [
        ([], {}, ValueError, r"shape \(n,\), n > 0, got \(0,\)"),
        ([[1.0, 2.0]], {}, ValueError, r"got \(1, 2\)"),
        ([1.0, -2.0, 3.0], {}, ValueError, r"norm 1 is -2\.0; a norm is not negative"),
        ([np.nan, np.inf, 0.0], {}, ValueError, "none of the 3 norms is finite"),
        (TOY, {"method": "lion"}, ValueError, "must be one of .*'sgd', 'adam'"),
        (TOY, {"smoothing": 1.0}, ValueError, r"smoothing must be in \[0, 1\)"),
        (TOY, {"smoothing": float("nan")}, ValueError, "smoothing must be in"),
        (TOY, {"total_steps": 0}, ValueError, "total_steps must be at least 1"),
        (TOY, {"total_steps": 4.0}, TypeError, "total_steps counts steps"),
    ],
)
def test_what_cannot_be_refined_is_refused(norms, changes, error, said):
    arguments = {"peak": 1.0, "total_steps": 4, **changes}
    with pytest.raises(error, match=rf"schedules\.refined: .*{said}"):
        schedules.refined(norms, **arguments)


def test_traced_norms_are_refused():
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda n: schedules.refined(n, peak=1.0, total_steps=4)(0))(
            jnp.asarray(TOY)
        )
