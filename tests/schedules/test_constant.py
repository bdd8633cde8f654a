"""The constant schedule, with and without a warm-up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules


def test_is_one_value_at_every_step():
    schedule = schedules.constant(3e-4)
    for step in (0, 1, 10**9, 2**31 - 1, np.uint32(7), jnp.int32(5)):
        assert schedule(step) == np.float32(3e-4)
        assert jax.jit(schedule)(step) == np.float32(3e-4)


def test_has_the_shape_of_the_count():
    schedule = schedules.constant(0.5)
    assert schedule(jnp.arange(4)).shape == (4,)
    np.testing.assert_array_equal(jax.vmap(schedule)(jnp.arange(4)), [0.5] * 4)
    # Optax's hands back the bare number.
    assert isinstance(optax.constant_schedule(0.5)(jnp.arange(4)), float)


def test_warms_up_as_optax_does():
    ours = schedules.constant(1e-3, warmup_steps=8, init_value=1e-5)
    theirs = optax.warmup_constant_schedule(1e-5, 1e-3, 8)
    steps = jnp.arange(12)
    # Optax's starts 8e-11 above 1e-5.
    np.testing.assert_allclose(ours(steps), theirs(steps), rtol=1e-6, atol=1e-10)
    assert ours(8) == np.float32(1e-3)


def test_a_warmup_alone_is_a_rising_schedule_of_another_hyperparameter():
    b2 = schedules.constant(0.999, warmup_steps=100, init_value=0.9)
    np.testing.assert_allclose([b2(t) for t in (0, 50, 100)], [0.9, 0.9495, 0.999])


def test_a_traced_value_compiles_once():
    traces = []

    @jax.jit
    def rate(value, count):
        traces.append(1)
        return schedules.constant(value)(count)

    assert [float(rate(value, 3)) for value in (0.25, 0.5)] == [0.25, 0.5]
    assert len(traces) == 1


def test_is_never_narrower_than_float32():
    assert schedules.constant(jnp.bfloat16(0.5))(0).dtype == jnp.float32
    with jax.enable_x64(True):
        assert schedules.constant(0.1)(0) == 0.1


def test_a_warmup_that_is_no_length_is_refused():
    with pytest.raises(ValueError, match=r"schedules\.constant: warmup_steps must be"):
        schedules.constant(1.0, warmup_steps=-1)
    with pytest.raises(TypeError, match=r"must be an integer, got 0\.1"):
        schedules.constant(1.0, warmup_steps=0.1)
