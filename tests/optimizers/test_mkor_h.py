"""MKOR-H: once flat, always its inner optimizer, bit for bit."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers

G = jnp.array([3.0, -4.0])


def put_out(losses, **arguments):
    """For each loss whether the preconditioner, a factor of 2, was out."""
    arguments = {"patience": 3, "min_steps": 0, "threshold": 1e-2, **arguments}
    tx = optimizers.scale_by_mkor_h(optax.scale(2.0), **arguments)
    state, seen = tx.init(G), []
    for loss in losses:
        updates, state = tx.update(G, state, value=loss)
        seen.append(bool(updates[0] == 3.0))
    return seen


def test_a_falling_loss_keeps_the_preconditioner():
    assert not any(put_out(0.9 ** np.arange(30)))


def test_a_flat_loss_puts_it_out_after_the_patience_and_for_good():
    flat = [1.0] * 3
    falling = list(0.8 ** np.arange(20))
    assert put_out(flat + falling) == [False, False] + [True] * 21


def test_not_before_the_least_number_of_steps():
    assert put_out([1.0] * 8, min_steps=5) == [False] * 5 + [True] * 3


def test_steps_that_are_not_flat_begin_the_count_anew():
    # Two flat steps, a fall that both averages see, and flat again much later.
    assert not any(put_out([1.0, 1.0, 0.5, 0.5, 0.5]))


def test_a_loss_that_is_not_finite_does_not_count():
    assert put_out([np.nan, 1.0, np.inf, 1.0, 1.0, 1.0, 1.0])[-1]
    assert not any(put_out([np.nan] * 10))


def test_put_out_it_is_sgd_to_the_bit():
    params = {"up": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}}
    stats = {"up": (jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0]))}
    tx = optimizers.mkor_h(
        0.1, optimizers.scale_by_mkor(every=1), patience=1, min_steps=0, momentum=0.5
    )
    sgd = optimizers.sgd(0.1, momentum=0.5)
    states = tx.init(params), sgd.init(params)
    for _ in range(4):
        got, first = tx.update(params, states[0], params, layer_stats=stats, value=1.0)
        want, second = sgd.update(params, states[1], params)
        states = first, second
        np.testing.assert_array_equal(got["up"]["kernel"], want["up"]["kernel"])


def test_a_missing_loss_is_named():
    tx = optimizers.mkor_h(0.1, optax.identity())
    with pytest.raises(TypeError, match=r"scale_by_mkor_h: .*value=loss"):
        tx.update(G, tx.init(G), G)
