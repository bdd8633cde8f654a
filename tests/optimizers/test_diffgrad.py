"""diffGrad against the authors' numbers and against the fault of the first release."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers
from tests.optimizers import fixture, trajectories

PUBLISHED = {
    "no decay": (
        {},
        [
            [[0.9475022473, -1.945016687], [0.4425558089, 2.940131281]],
            [[0.9503961039, -1.896079266], [0.3916143864, 2.887652233]],
            [[0.9410058521, -1.858250497], [0.3811817089, 2.835120926]],
        ],
    ),
    "coupled decay": (
        {"weight_decay": 0.1},
        [
            [[0.9450166872, -1.940131281], [0.4413382951, 2.933181253]],
            [[0.909225208, -1.888501966], [0.3899921054, 2.880781738]],
            [[0.8674643563, -1.839256757], [0.3706886171, 2.828228926]],
        ],
    ),
}


def adam(w, grads, eta, *, frictions):
    """Adam with the old place of eps and a friction for each step, in float64."""
    m, v, points = 0.0, 0.0, []
    for t, (g, x) in enumerate(zip(grads, frictions, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        factor = np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        w = w - eta * factor * x * m / (np.sqrt(v) + 1e-8)
        points.append(w)
    return points


@pytest.mark.parametrize("case", PUBLISHED)
def test_equals_the_authors_numbers(case):
    settings, want = PUBLISHED[case]
    got = fixture.run(optimizers.diffgrad, **settings)
    np.testing.assert_allclose(got, want, rtol=fixture.DIGITS)


def test_the_previous_gradient_is_not_the_present_one():
    got = fixture.run(optimizers.diffgrad)
    grads = [np.array(g) for g in fixture.GRADIENTS]
    changes = np.diff([np.zeros((2, 2)), *grads], axis=0)
    rule = adam(
        np.array(fixture.START), grads, 0.1, frictions=1 / (1 + np.exp(-abs(changes)))
    )
    np.testing.assert_allclose(got, rule, rtol=1e-12)
    # The first release: what it remembers is the very buffer that it compares with.
    first = 1 / (1 + np.exp(-abs(grads[0])))
    fault = adam(np.array(fixture.START), grads, 0.1, frictions=[first, 0.5, 0.5])
    np.testing.assert_allclose(got[0], fault[0], rtol=1e-12)
    for step in (1, 2):
        # Where the gradient has changed, every entry.
        assert np.abs(got[step] - fault[step]).min() > 1e-4


def test_a_constant_gradient_gives_half_of_adam():
    g = jnp.array([3.0, -0.2])
    points, state = trajectories.parameters(optimizers.diffgrad(0.1), g, [g] * 3)
    np.testing.assert_allclose(points[2] - points[1], -0.05 * jnp.sign(g), rtol=1e-4)
    np.testing.assert_array_equal(state[0][1].previous, g)


def test_decoupled_decay_goes_round_the_averages():
    g = jnp.zeros(2)
    for decoupled, want in ((True, -0.01), (False, -0.1 / (1 + np.exp(-0.1)))):
        tx = optimizers.diffgrad(0.1, weight_decay=0.1, decoupled=decoupled)
        updates, _ = tx.update(g, tx.init(jnp.ones(2)), jnp.ones(2))
        np.testing.assert_allclose(updates, want, rtol=1e-4)


def test_twelve_bytes_a_parameter():
    got = trajectories.state_bytes(optimizers.diffgrad(0.1), jnp.ones((64, 64)))
    assert got == 12 * 64**2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"b2": 1.5},
            r"scale_by_diffgrad: b2 must be at least 0 and below 1, got 1\.5",
        ),
        ({"eps": -1e-8}, "scale_by_diffgrad: eps must be 0 or more, got -1e-08"),
        ({"weight_decay": -1.0}, r"diffgrad: weight_decay must be .*got -1\.0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.diffgrad(0.1, **settings)


@pytest.mark.parametrize("decoupled", [True, False])
def test_missing_parameters_are_named(decoupled):
    tx = optimizers.diffgrad(0.1, decoupled=decoupled)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., para"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
