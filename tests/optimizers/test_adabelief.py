"""AdaBelief against the authors' numbers, plain momentum and Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import fixture, trajectories

PLAIN = {"rectify": False}
PUBLISHED = {
    "eps 1e-16": (
        PLAIN,
        [
            [[0.8888888889, -1.888888889], [0.3888888889, 2.888888889]],
            [[0.894451932, -1.78136707], [0.2761479501, 2.772217491]],
            [[0.875923421, -1.698947069], [0.2582934871, 2.649857042]],
        ],
    ),
    "eps 1e-8": (
        {**PLAIN, "eps": 1e-8},
        [
            [[0.8889574249, -1.888906038], [0.388896513, 2.888893178]],
            [[0.8945173625, -1.781412834], [0.2761672868, 2.772225659]],
            [[0.8760027333, -1.699025196], [0.2583142057, 2.649868776]],
        ],
    ),
    "decoupled decay": (
        {**PLAIN, "weight_decay": 0.1},
        [
            [[0.8788888889, -1.868888889], [0.3838888889, 2.858888889]],
            [[0.8756630432, -1.742678181], [0.2673090613, 2.713628602]],
            [[0.8483779017, -1.642831399], [0.2467815076, 2.564131867]],
        ],
    ),
    "rectified": (
        {},
        [
            [[0.99, -1.98], [0.47, 2.96]],
            [[0.9905263158, -1.965263158], [0.4452631579, 2.914736842]],
            [[0.9890134007, -1.955964265], [0.4407244125, 2.864035735]],
        ],
    ),
}
# The gradients over and over: the last plain step, the first rectified one, another.
LATER = {
    5: [[0.9844658174, -1.931731747], [0.4148719486, 2.768268253]],
    6: [[0.9839859041, -1.929467324], [0.4144090622, 2.764668653]],
    9: [[0.9815268843, -1.917989469], [0.4105860761, 2.747342858]],
}


def transcription(w, grads, eta, *, eps=1e-16, b2=0.999, amsgrad=False, decay=0.0):
    """Not rectified, with coupled decay, one leaf in float64."""
    m, s, most, points = 0.0, 0.0, 0.0, []
    for t, g in enumerate(grads, start=1):
        g = g + decay * w
        m = 0.9 * m + 0.1 * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        most = np.maximum(s, most) if amsgrad else s
        w = w - eta * m / (1 - 0.9**t) / (np.sqrt(most / (1 - b2**t)) + eps)
        points.append(w)
    return points


@pytest.mark.parametrize("case", PUBLISHED)
def test_equals_the_authors_numbers(case):
    settings, want = PUBLISHED[case]
    got = fixture.run(optimizers.adabelief, **settings)
    np.testing.assert_allclose(got, want, rtol=fixture.DIGITS)


def test_the_sixth_step_is_the_first_rectified_one():
    got = fixture.run(optimizers.adabelief, steps=9)
    for step, want in LATER.items():
        np.testing.assert_allclose(got[step - 1], want, rtol=fixture.DIGITS)
    still = fixture.run(optimizers.adabelief, steps=6, sgd_start=False)
    np.testing.assert_array_equal(still[4], fixture.START)
    np.testing.assert_allclose(still[5] - still[4], got[5] - got[4], rtol=1e-12)


@pytest.mark.parametrize("b2", [0.99, 0.999, 0.9999, 0.99999])
def test_in_float32_rectification_begins_at_the_same_step(b2):
    # There 2 / (1 - b2) less its neighbour is off by more than r_5 is below 5.
    g = jnp.ones(1)
    tx = optimizers.scale_by_adabelief(b2=b2, sgd_start=False)
    update = jax.jit(tx.update)
    state, moves = tx.init(g), []
    for _ in range(6):
        u, state = update(g, state)
        moves.append(bool(u[0] != 0))
    assert moves == [False] * 5 + [True]


@pytest.mark.parametrize(
    "settings", [{"amsgrad": True}, {"decay": 0.1}, {"b2": 0.9, "eps": 1e-3}], ids=str
)
def test_equals_its_equations(settings):
    grads = trajectories.gradients((2, 3), steps=6, dtype=np.float64)
    # Small ones after large ones: only then is the largest variance not the last.
    grads = [g * scale for g, scale in zip(grads, (1, 9, 9, 1, 0.1, 0.1), strict=True)]
    ours = {k: v for k, v in settings.items() if k != "decay"}
    if "decay" in settings:
        ours |= {"weight_decay": settings["decay"], "decoupled": False}
    with jax.enable_x64(True):
        tx = optimizers.adabelief(0.1, rectify=False, **{"b2": 0.5, **ours})
        got, _ = trajectories.parameters(tx, jnp.ones((2, 3)), grads, compiled=True)
    want = transcription(np.ones((2, 3)), grads, 0.1, **{"b2": 0.5, **settings})
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_largest_variance_is_kept_only_where_it_divides():
    for settings, buffers in (({"rectify": False}, 3), ({}, 2)):
        tx = optimizers.scale_by_adabelief(amsgrad=True, **settings)
        arrays = [x for x in jax.tree.leaves(tx.init(jnp.ones(4))) if x.ndim]
        assert len(arrays) == buffers


def test_without_decay_and_rectification_equals_optax():
    grads = trajectories.gradients((2, 3), steps=5)
    ours = optimizers.adabelief(0.01, rectify=False, eps=1e-8)
    theirs = optax.adabelief(0.01, eps=1e-8, eps_root=1e-8)
    got, _ = trajectories.parameters(ours, jnp.ones((2, 3)), grads)
    want, _ = trajectories.parameters(theirs, jnp.ones((2, 3)), grads)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"scale_by_adabelief: b1 must be at least 0 and below 1, got 1"),
        ({"eps": -1e-8}, "scale_by_adabelief: eps must be 0 or more, got -1e-08"),
        ({"weight_decay": -1.0}, r"adabelief: weight_decay must be .*got -1\.0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.adabelief(0.1, **settings)


@pytest.mark.parametrize("decoupled", [True, False])
def test_missing_parameters_are_named(decoupled):
    tx = optimizers.adabelief(0.1, weight_decay=0.1, decoupled=decoupled)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., para"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
