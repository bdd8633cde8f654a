"""The tracked loss is the predicted one, and updates pass through untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import laws, optimizers, probes, schedules
from tests.laws import simulated

STEPS = 400
SCHEDULE = schedules.wsd(
    simulated.PEAK, total_steps=STEPS, decay_steps=100, warmup_steps=20
)


@pytest.fixture(scope="module", params=["progress", "annealing", "power"])
def fitted(request):
    law = simulated.make(request.param)
    curves = [
        simulated.curve(law, simulated.SCHEDULES[name]) for name in ("constant", "drop")
    ]
    return laws.fit(curves, law)


def follow(tx, steps, state):
    gradient = {"w": jnp.ones((3,), jnp.bfloat16)}

    def body(state, _):
        updates, state = tx.update(gradient, state)
        return state, (updates, state.predicted_loss)

    return jax.lax.scan(body, state, None, length=steps)


def test_tracks_the_predicted_curve_to_the_end(fitted):
    tx = probes.track_law(SCHEDULE, fitted, total_steps=STEPS)
    state, (updates, tracked) = follow(tx, STEPS, tx.init(None))
    predicted = laws.predict(fitted, SCHEDULE, STEPS)
    # The first rate is 0. Sums of float32: sqrt(T) eps, times ten.
    bound = 10 * np.sqrt(STEPS) * 2.0**-24
    np.testing.assert_allclose(tracked[1:], predicted.loss[1:], rtol=bound)
    assert np.isinf(tracked[0])
    np.testing.assert_allclose(
        state.predicted_final_loss, predicted.loss[-1], rtol=1e-6
    )
    assert updates["w"].dtype == jnp.bfloat16 and (updates["w"] == 1).all()


def test_a_run_resumed_in_the_middle_goes_on_the_same(fitted):
    tx = probes.track_law(SCHEDULE, fitted, total_steps=STEPS)
    _, (_, whole) = follow(tx, STEPS, tx.init(None))
    half, _ = follow(tx, 350, tx.init(None))
    restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), half)
    _, (_, rest) = follow(tx, 50, restored)
    np.testing.assert_array_equal(rest, whole[350:])


def test_the_rates_are_those_of_the_chain(fitted):
    track = probes.track_law(SCHEDULE, fitted, total_steps=STEPS)
    tx = optax.chain(track, optimizers.sgd(SCHEDULE))
    state = tx.init(jnp.ones(2))
    update = jax.jit(tx.update)
    for _ in range(25):
        _, state = update(jnp.ones(2), state)
        rate = optax.tree.get(state, "learning_rate")
        np.testing.assert_array_equal(state[0].rate, rate)
    assert state[0].count == 25


def test_a_law_without_sums_is_refused():
    law = laws.multi_power_law()
    curves = [
        simulated.curve(law, simulated.SCHEDULES[name]) for name in ("constant", "drop")
    ]
    fitted = laws.fit(curves, law)
    with pytest.raises(ValueError, match=r"track_law: the multi_power law cannot be"):
        probes.track_law(SCHEDULE, fitted, total_steps=STEPS)


def test_a_longer_run_than_the_law_knows_warns(fitted):
    with pytest.warns(laws.ExtrapolationWarning, match="more than 3 times"):
        probes.track_law(
            schedules.constant(simulated.PEAK), fitted, total_steps=4 * STEPS
        )
