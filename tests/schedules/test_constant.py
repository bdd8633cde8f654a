"""The constant schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
