"""Warm-up, stable, decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules
from optlab.schedules import shapes


def exact(step, peak, total, decay, warmup, end):
    """Float64; the 1-sqrt decay as published, 1 - sqrt(q), q the fraction done."""
    if step < warmup:
        return peak * step / warmup
    q = min(max((step - (total - decay)) / decay, 0.0), 1.0)
    return end + (peak - end) * (1 - np.sqrt(q))


@pytest.mark.parametrize("end", [0.0, 1e-4])
def test_equals_the_formula_at_every_step(end):
    rate = schedules.wsd(
        1e-3, total_steps=90, decay_steps=30, warmup_steps=10, end_value=end
    )
    want = [exact(step, 1e-3, 90, 30, 10, end) for step in range(100)]
    np.testing.assert_allclose(rate(jnp.arange(100)), want, rtol=2e-6, atol=1e-12)


def test_nothing_before_the_decay_depends_on_the_total():
    steps = jnp.arange(61)
    runs = [
        schedules.wsd(1e-3, total_steps=total, decay_steps=30, warmup_steps=10)(steps)
        for total in (90, 91, 1000, 10**9)
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


def test_a_decay_branched_off_later_is_the_same_decay():
    early = schedules.wsd(1e-3, total_steps=50, decay_steps=20)(jnp.arange(30, 51))
    late = schedules.wsd(1e-3, total_steps=80, decay_steps=20)(jnp.arange(60, 81))
    np.testing.assert_array_equal(early, late)


def test_takes_any_decay_from_one_to_nothing():
    rate = schedules.wsd(1.0, total_steps=10, decay_steps=4, decay=lambda u: u**3)
    np.testing.assert_allclose(rate(jnp.arange(6, 11)), [1, 27 / 64, 1 / 8, 1 / 64, 0])


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"decay_steps": 0}, ValueError, "decay_steps must be at least 1"),
        ({"decay_steps": 11}, ValueError, "do not fit into total_steps=10"),
        ({"decay_steps": 8, "warmup_steps": 3}, ValueError, "warmup_steps=3 do not"),
        ({"decay_steps": 0.2}, TypeError, "decay_steps counts steps"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        schedules.wsd(1.0, total_steps=10, **changes)


def test_the_whole_run_may_be_decay():
    rate = schedules.wsd(
        1.0, total_steps=8, decay_steps=8, decay=shapes.cosine, end_value=0.0
    )
    steps = jnp.arange(9)
    want = schedules.cosine(1.0, total_steps=8)(steps)
    np.testing.assert_array_equal(rate(steps), want)


PUBLISHED = {
    "geometric": (shapes.geometric, lambda q, p, f: p * (f / p) ** q),
    "harmonic": (shapes.harmonic, lambda q, p, f: 1 / (q / f + (1 - q) / p)),
    "exponential of Megatron": (
        shapes.exponential(2.0),
        lambda q, p, f: f + (p - f) * (2 * 0.5**q - 1),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("floor", [1e-6, 1e-4, 9e-4, 1e-3])
def test_decays_to_a_floor_equal_their_published_formulas(name, floor):
    decay, formula = PUBLISHED[name]
    rate = schedules.wsd(
        1e-3, total_steps=90, decay_steps=30, end_value=floor, decay=decay
    )
    q = np.clip((np.arange(100) - 60) / 30, 0, 1)
    got = rate(jnp.arange(100))
    np.testing.assert_allclose(got, formula(q, 1e-3, floor), rtol=2e-6)
    assert (got[:61] == np.float32(1e-3)).all()
    assert (got[90:] == np.float32(floor)).all()


@pytest.mark.parametrize("name", ["geometric", "harmonic"])
def test_a_mean_takes_traced_ends_and_compiles_once(name):
    decay, formula = PUBLISHED[name]
    traces = []

    @jax.jit
    def rate(peak, floor):
        traces.append(1)
        return schedules.wsd(
            peak, total_steps=9, decay_steps=4, end_value=floor, decay=decay
        )(jnp.arange(10))

    q = np.clip((np.arange(10) - 5) / 4, 0, 1)
    for peak, floor in ((1e-3, 1e-5), (2.0, 2.0), (0.5, 0.1)):
        got, want = rate(peak, floor), formula(q, peak, floor)
        np.testing.assert_allclose(got, want, rtol=3e-6)
        assert got[5] == np.float32(peak) and got[9] == np.float32(floor)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["geometric", "harmonic"])
@pytest.mark.parametrize("floor", [0.0, -1e-4, jnp.float32(0)])
def test_a_mean_without_a_positive_floor_is_refused(name, floor):
    said = rf"end_value must be positive, got .*; a decay along shapes\.{name}"
    with pytest.raises(ValueError, match=rf"schedules\.wsd: {said}"):
        schedules.wsd(
            1e-3,
            total_steps=9,
            decay_steps=4,
            end_value=floor,
            decay=getattr(shapes, name),
        )


def test_a_half_life_of_fifty_steps_halves_and_is_held():
    rate = schedules.wsd(
        1e-3, total_steps=1000, decay_steps=200, decay=shapes.half_life(50 / 200)
    )
    got = rate(jnp.array([800, 825, 850, 900, 950, 1000, 1001, 2**31 - 1]))
    want = 1e-3 * 0.5 ** np.array([0, 0.5, 1, 2, 3, 4, 4, 4])
    np.testing.assert_allclose(got, want, rtol=1e-6)
