"""The power scheduler in tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules

BATCH = {"tokens_per_step": 128 * 4096, "batch_size": 128}


def exact(step, peak=0.02):
    tokens = np.maximum(np.asarray(step, np.float64), 1) * 128 * 4096
    return np.minimum(peak, 128 * 4.6 * tokens**-0.51)


def test_equals_the_formula_where_the_tokens_exceed_int32():
    rate = schedules.power(0.02, **BATCH)
    steps = np.array([0, 1, 1000, 1107, 1108, 4096, 10**4, 10**6, 2**31 - 1], np.int32)
    np.testing.assert_allclose(rate(steps), exact(steps), rtol=2e-6)


def test_one_step_of_twice_the_batch_is_two_steps_for_the_tokens():
    small = schedules.power(1.0, tokens_per_step=1e6, batch_size=64)
    large = schedules.power(1.0, tokens_per_step=2e6, batch_size=128)
    steps = jnp.array([100, 10**4, 10**6])
    np.testing.assert_allclose(large(steps), 2 * small(2 * steps), rtol=2e-6)


def test_warms_up_to_the_cap():
    rate = schedules.power(0.02, warmup_steps=100, **BATCH)
    np.testing.assert_allclose(rate(jnp.array([0, 50, 100])), [0, 0.01, 0.02])


def test_the_final_decay_is_exponential_and_starts_where_the_law_is():
    run = {"total_steps": 5000, "decay_steps": 1000, "warmup_steps": 10}
    rate = schedules.power(0.02, end_value=1e-5, **run, **BATCH)
    free = schedules.power(0.02, warmup_steps=10, **BATCH)
    before = jnp.arange(4001)
    np.testing.assert_array_equal(rate(before), free(before))
    steps = np.arange(4000, 5001)
    start = exact(4000)
    want = start * (1e-5 / start) ** ((steps - 4000) / 1000)
    np.testing.assert_allclose(rate(steps), want, rtol=3e-6)
    for step in (5000, 5001, 2**31 - 1):
        assert rate(step) == np.float32(1e-5)


def test_gradients_are_finite_at_every_step_from_zero_on():
    def rates(amplitude, exponent, tokens, batch, end):
        return schedules.power(
            0.02,
            tokens_per_step=tokens,
            batch_size=batch,
            amplitude=amplitude,
            exponent=exponent,
            total_steps=5000,
            decay_steps=1000,
            end_value=end,
        )(jnp.array([0, 1, 2000, 4000, 4500, 5000, 6000]))

    values = (4.6, -0.51, 128.0 * 4096, 128.0, 1e-5)
    slopes = jax.jacobian(rates, argnums=(0, 1, 2, 3, 4))(*values)
    assert np.isfinite(slopes).all()
    assert slopes[1][2] > 0


def test_traced_numbers_agree_with_known_ones():
    @jax.jit
    def rate(exponent, tokens, count):
        return schedules.power(
            0.02, tokens_per_step=tokens, batch_size=128, exponent=exponent
        )(count)

    for step in (0, 10**4, 10**8):
        got = rate(-0.51, 128 * 4096.0, step)
        np.testing.assert_allclose(got, exact(step), rtol=5e-6)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tokens_per_step": 0}, ValueError, "tokens_per_step must be positive, got 0"),
        ({"batch_size": -1}, ValueError, "batch_size must be positive"),
        ({"amplitude": float("nan")}, ValueError, "amplitude must be positive"),
        ({"exponent": 0.5}, ValueError, r"exponent must be negative, got 0\.5"),
        ({"decay_steps": 5}, TypeError, "decay_steps=5 needs total_steps, got None"),
        (
            {"decay_steps": 8, "warmup_steps": 3, "total_steps": 10, "end_value": 1e-4},
            ValueError,
            "do not fit into total_steps=10",
        ),
        ({"decay_steps": 5, "total_steps": 10}, ValueError, "end_value must be positi"),
        (
            {"decay_steps": 5, "total_steps": 10, "end_value": 1.0},
            ValueError,
            r"end_value=1\.0 lies above",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(changes, error, said):
    with pytest.raises(error, match=rf"schedules\.power: .*{said}"):
        schedules.power(0.02, **{**BATCH, **changes})
