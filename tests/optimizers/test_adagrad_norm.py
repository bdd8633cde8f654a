"""AdaGrad-Norm: one length for all leaves, whatever their units and sizes."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers
from tests.conformance import references
from tests.optimizers import fixture, trajectories


def test_steps_shrink_as_one_over_the_root_of_their_number():
    tx = optimizers.adagrad_norm(1.0)
    points, _ = trajectories.parameters(tx, jnp.zeros(2), [jnp.array([3.0, 4.0])] * 4)
    lengths = np.cumsum(np.arange(1, 5) ** -0.5)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), lengths, rtol=1e-6)


def test_there_is_one_sum_and_not_one_for_each_row():
    """The authors' code divides each row by its own length: by 5 and by 12 here."""
    g = np.array([[3.0, 4.0], [0.0, 12.0]], np.float32)
    update = trajectories.last_update(optimizers.scale_by_adagrad_norm(), [g])
    np.testing.assert_allclose(update, g / 13, rtol=1e-6)


def test_the_units_of_the_loss_do_not_matter():
    run = [
        trajectories.last_update(
            optimizers.scale_by_adagrad_norm(eps=0.0),
            [unit * np.arange(3, dtype=np.float32), unit * np.ones(3, np.float32)],
        )
        for unit in (1.0, 1e30, 1e-30)
    ]
    np.testing.assert_allclose(run[0], np.full(3, 8**-0.5), rtol=1e-6)
    np.testing.assert_allclose(run[1:], [run[0]] * 2, rtol=1e-6)


def test_no_gradient_is_no_step_and_no_number_is_forgotten():
    tx = optimizers.scale_by_adagrad_norm(eps=0.0)
    zero = np.zeros(2, np.float32)
    assert not trajectories.last_update(tx, [zero]).any()
    bad, good = np.array([1.0, np.inf], np.float32), np.array([3.0, 4.0], np.float32)
    assert not trajectories.last_update(tx, [bad]).any()
    np.testing.assert_allclose(
        trajectories.last_update(tx, [bad, good]), good / 5, rtol=1e-6
    )


def test_equals_its_equations_with_every_argument():
    settings = {"eps": 0.1, "initial_norm": 0.2, "weight_decay": 0.1}
    got = fixture.run(optimizers.adagrad_norm, **settings)
    given = {**settings, "learning_rate": fixture.RATE}
    want = references.REFERENCES["adagrad_norm"](given)(
        np.array(fixture.START), [np.array(g) for g in fixture.GRADIENTS]
    )
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["eps", "initial_norm"])
def test_what_is_negative_is_refused_by_name(name):
    said = f"scale_by_adagrad_norm: {name} must be 0 or more, got -1.0"
    with pytest.raises(ValueError, match=said):
        optimizers.adagrad_norm(0.1, **{name: -1.0})
