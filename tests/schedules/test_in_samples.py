"""A schedule of examples: one curve whatever the batch, changes without compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import controllers, optimizers, schedules

TOTAL = 96
LINE = schedules.cosine(0.5, total_steps=TOTAL, warmup_steps=12)


def test_with_one_batch_size_it_is_the_curve_at_its_multiples():
    rate = schedules.in_samples(LINE, 8, factor=2.0)
    np.testing.assert_allclose(
        rate(jnp.arange(14)), 2 * LINE(8 * jnp.arange(14)), rtol=1e-6
    )


def test_a_run_whose_batch_grows_stays_on_the_curve():
    traces = []
    tx = optimizers.adagrad_norm(schedules.in_samples(LINE, 4))

    @jax.jit
    def step(params, state):
        traces.append(1)
        return tx.update(params, state, params)[1]

    controller = controllers.batch_size(
        4, max_batch_size=16, microbatch_size=4, test_every=3, lr_scaling="sqrt"
    )
    now, params = controller.init(), jnp.ones(2)
    state, seen = tx.init(params), []
    while now.samples < TOTAL:
        state = step(params, state)
        wanted = now.learning_rate * LINE(now.samples)
        got = optax.tree.get(state, "learning_rate")
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
        seen.append(now.batch_size)
        now = controller.step(now, 1.0, 1e3)
        if now.batch_size != seen[-1]:
            state = optax.tree.set(
                state,
                batch_size=jnp.int32(now.batch_size),
                from_update=jnp.int32(now.updates),
                from_samples=jnp.int32(now.samples),
                factor=jnp.float32(now.learning_rate),
            )
    assert seen == [4] * 3 + [8] * 3 + [16] * 4
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "more", "error", "said"),
    [
        ((0,), {}, ValueError, "batch_size must be at least 1"),
        ((2.5,), {}, TypeError, "batch_size counts steps and must be an integer"),
        ((8,), {"factor": 0.0}, ValueError, r"factor must be positive, got 0\.0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, more, error, said):
    with pytest.raises(error, match=said):
        schedules.in_samples(LINE, *arguments, **more)
