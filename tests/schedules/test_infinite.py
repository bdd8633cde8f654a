"""The infinite schedule: four phases, three cool-downs, annealing on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules
from optlab.schedules import shapes

LAST = 2**31 - 1
P, C, M = 1e-3, 5e-4, 1e-5
COOLDOWNS = {
    "cosine": (shapes.cosine, lambda x: (1 + np.cos(np.pi * x)) / 2),
    "linear": (shapes.linear, lambda x: 1 - x),
    "inverse square root": (
        shapes.inverse_sqrt(10.0),
        lambda x: 1 - ((1 + 10 * x) ** -0.5 - 1) / (11**-0.5 - 1),
    ),
}
over_cooldowns = pytest.mark.parametrize("name", COOLDOWNS)


def build(peak=P, **changes):
    arguments = {
        "stable_value": C,
        "end_value": M,
        "warmup_steps": 10,
        "cooldown_steps": 30,
        "annealing_steps": 20,
        "annealing_start": 80,
    }
    return schedules.infinite(peak, **{**arguments, **changes})


@over_cooldowns
def test_equals_the_formula_at_every_step(name):
    cooldown, falling = COOLDOWNS[name]
    t = np.arange(120)
    want = np.select(
        [t < 10, t < 40, t <= 80],
        [P * t / 10, C + (P - C) * falling(np.clip((t - 10) / 30, 0, 1)), C],
        C * (M / C) ** (np.clip(t - 80, 0, 20) / 20),
    )
    got = build(cooldown=cooldown)(jnp.arange(120))
    np.testing.assert_allclose(got, want, rtol=2e-6)


@over_cooldowns
def test_each_boundary_is_exact(name):
    schedule = build(cooldown=COOLDOWNS[name][0], init_value=1e-6)
    for run in (schedule, jax.jit(schedule)):
        assert run(0) == np.float32(1e-6)
        assert run(10) == np.float32(P)
        for step in (40, 41, 79, 80):
            assert run(step) == np.float32(C)
        for step in (100, 101, 2**24 + 1, LAST):
            assert run(step) == np.float32(M)


@over_cooldowns
def test_is_continuous_and_never_rises_after_the_warmup(name):
    long = build(
        cooldown=COOLDOWNS[name][0],
        warmup_steps=1000,
        cooldown_steps=3000,
        annealing_steps=2000,
        annealing_start=8000,
    )
    rates = np.asarray(long(jnp.arange(12000)))
    assert (np.diff(rates[1000:]) <= 0).all()
    assert np.abs(np.diff(rates)).max() < 0.01 * P


def test_without_a_start_it_never_anneals():
    rates = build(annealing_start=schedules.NEVER)(jnp.array([40, 10**9, LAST]))
    np.testing.assert_array_equal(rates, np.float32(C))


def test_a_start_near_the_last_count_does_not_wrap_round():
    rates = build(annealing_start=LAST - 5)(jnp.array([LAST - 6, LAST - 5, LAST]))
    np.testing.assert_allclose(rates, [C, C, C * (M / C) ** 0.25], rtol=2e-6)


def test_without_a_cooldown_it_is_wsd_with_exponential_decay():
    steps = jnp.arange(150)
    ours = build(cooldown_steps=0, stable_value=P)(steps)
    wsd = schedules.wsd(
        P,
        total_steps=100,
        decay_steps=20,
        warmup_steps=10,
        end_value=M,
        decay=shapes.geometric,
    )
    np.testing.assert_array_equal(ours, wsd(steps))


def test_a_traced_start_gives_the_same_bits_and_compiles_once():
    traces = []

    @jax.jit
    def rate(start, count):
        traces.append(1)
        return build(annealing_start=start)(count)

    for start in (40, 80, 1000, schedules.NEVER):
        for count in (0, 5, 10, 25, 40, 45, 60, 85, 100, 1010, LAST):
            assert rate(jnp.int32(start), count) == build(annealing_start=start)(count)
    # Too early: the annealing waits for the end of the cool-down.
    assert rate(jnp.int32(0), 39) == build()(39)
    assert rate(jnp.int32(0), 50) == build(annealing_start=40)(50)
    assert len(traces) == 1


def test_traced_rates_compile_once():
    traces = []

    @jax.jit
    def rate(peak, stable, end, count):
        traces.append(1)
        return build(peak, stable_value=stable, end_value=end)(count)

    for peak, stable, end in ((P, C, M), (1.0, 0.5, 0.1), (2.0, 2.0, 0.5)):
        got = [rate(peak, stable, end, count) for count in (10, 60, 100)]
        assert got == [np.float32(value) for value in (peak, stable, end)]
    assert len(traces) == 1


def test_another_annealing_may_end_at_zero():
    rates = build(annealing=shapes.linear, end_value=0.0)(jnp.array([80, 90, 100]))
    np.testing.assert_allclose(rates, [C, C / 2, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"annealing_start": 39}, ValueError, "annealing_start must be at least 40"),
        ({"annealing_start": 0.8}, TypeError, "annealing_start counts steps"),
        ({"annealing_steps": 0}, ValueError, "annealing_steps must be at least 1"),
        ({"cooldown_steps": -1}, ValueError, "cooldown_steps must be at least 0"),
        ({"cooldown_steps": 0}, ValueError, "no time to fall from the peak 0.001 to"),
        ({"stable_value": 2e-3}, ValueError, "stable_value=0.002 lies above the peak"),
        ({"end_value": 6e-4}, ValueError, "end_value=0.0006 lies above the stable val"),
        ({"end_value": 0.0}, ValueError, "end_value must be positive"),
        (
            {"cooldown": shapes.geometric, "stable_value": 0.0},
            ValueError,
            "stable_value must be positive|lies above the stable",
        ),
    ],
)
def test_phases_that_do_not_fit_are_refused(changes, error, said):
    with pytest.raises(error, match=rf"schedules\.infinite: .*({said})"):
        build(**changes)
