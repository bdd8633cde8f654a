"""AdamP: the authors' numbers, the axis of channels, the thresholds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import links, optimizers, trees
from tests.conformance.references import projected
from tests.optimizers import fixture, trajectories

# Rows are output channels, as in the authors' layout: gradients at right angles to each
# row, and such as are at right angles to the matrix as a whole only.
FIRST = [[3.0, 4.0], [1.0, 0.0]], [[[4.0, -3.0], [0.0, 2.0]]]
LAYER = (
    [[1.0, 0.0], [0.0, 1.0]],
    [[[1.0, 0.5], [0.5, -1.0]], [[0.3, -0.2], [1.0, -0.4]]],
)
PLAIN = fixture.START, fixture.GRADIENTS
ADAMP = functools.partial(optimizers.adamp, 0.1)
SGDP = functools.partial(optimizers.sgdp, 0.1, momentum=0.9, weight_decay=0.01)
PUBLISHED = {
    "channels": (FIRST, {"weight_decay": 0.1}, [[[2.885, 4.08], [0.999, -0.1]]]),
    "the layer": (
        LAYER,
        {"weight_decay": 0.1},
        [
            [[0.899000001, -0.099999998], [-0.099999998, 1.098999999]],
            [[0.8044402838, -0.1335605819], [-0.1955181994, 1.177867518]],
        ],
    ),
    "nothing is projected": (
        PLAIN,
        {"weight_decay": 0.1},
        [
            [[0.89000001, -1.880000005], [0.3950000033, 2.870000002]],
            [[0.8863631673, -1.767982047], [0.2940147943, 2.741335901]],
            [[0.8600269842, -1.678244476], [0.2743142195, 2.613858907]],
        ],
    ),
    "nothing is projected, nesterov": (
        PLAIN,
        {"weight_decay": 0.1, "nesterov": True},
        [
            [[0.800000019, -1.790000009], [0.3050000063, 2.780000005]],
            [[0.8493684341, -1.654911719], [0.1733267399, 2.60411365]],
            [[0.803841464, -1.573510627], [0.1973881782, 2.444319332]],
        ],
    ),
}


def run(case, **settings):
    (start, gradients), more, wanted = PUBLISHED[case]
    turned = settings.get("channel_axis") != 0
    if turned:
        start, gradients = np.transpose(start), np.swapaxes(gradients, 1, 2)
    got = fixture.run(
        optimizers.adamp,
        steps=len(wanted),
        start=start,
        gradients=gradients,
        **more,
        **settings,
    )
    return np.swapaxes(got, 1, 2) if turned else got


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_numbers_of_the_authors_code(case):
    wanted = PUBLISHED[case][2]
    # 'channels' is by hand, without eps.
    digits = 1e-7 if case == "channels" else fixture.DIGITS
    np.testing.assert_allclose(run(case, channel_axis=0), wanted, rtol=digits)
    # The transpose, with its channels last, takes the transposed steps.
    np.testing.assert_allclose(run(case, channel_axis=-1), wanted, rtol=digits)


@pytest.mark.parametrize("channel_axis", [1, (1,), None])
def test_other_names_of_the_last_axis(channel_axis):
    got, wanted = (run("channels", channel_axis=a) for a in (channel_axis, -1))
    np.testing.assert_array_equal(got, wanted)


def test_the_wrong_axis_is_another_method():
    start, gradients = FIRST
    got = fixture.run(
        optimizers.adamp,
        steps=1,
        start=start,
        gradients=gradients,
        weight_decay=0.1,
        channel_axis=1,
    )
    # No channel is at right angles, so the layer is projected as a whole.
    wanted = [[2.88546152, 4.08061538], [0.99515385, -0.1]]
    np.testing.assert_allclose(got[0], wanted, rtol=fixture.DIGITS)
    # A sum with a part along the weights: each row loses its own, or the layer one.
    rule = {"delta": 0.1, "eps": 0.0, "wd_ratio": 0.1, "views": None}
    w, g = jnp.array(FIRST[0]), jnp.array(FIRST[1][0])
    for axis in (0, 1):
        q, _ = links.tangent(
            "me",
            g + jnp.diag(jnp.array([1.0, -3.0])) @ w,
            g,
            w,
            channel_axis=axis,
            **rule,
        )
        radial = jnp.sum(q * w, 1)
        assert (np.max(np.abs(radial)) < 1e-5) == (axis == 0)


@pytest.mark.parametrize("name", ["adamp", "sgdp"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("delta", [0.1, 2.0, 4.0])
def test_steps_equal_the_paper_also_where_it_projects(name, nesterov, delta):
    """Of 4.0 all channels are projected, of 2.0 layers, of 0.1 nothing."""
    make = getattr(optimizers, name)
    tx = make(0.01, delta=delta, weight_decay=0.1, nesterov=nesterov)
    h = {"b1": 0.9, "b2": 0.999, "momentum": 0.9, "dampening": 0.0, "eps": 1e-8}
    h |= {"learning_rate": 0.01, "weight_decay": 0.1, "wd_ratio": 0.1}
    h |= {"delta": delta, "nesterov": nesterov}
    shapes = {"layers": {"kernel": (2, 6, 8), "bias": (2, 8)}}
    grads = [
        jax.tree.map(
            lambda shape, k=k: trajectories.gradients(shape, k + 1)[k],
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for k in range(3)
    ]
    params = jax.tree.map(lambda g: jnp.asarray(np.cos(3 * g), jnp.float32), grads[0])
    got = trajectories.parameters(tx, params, grads)[0]
    wide = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
    wanted = getattr(projected, name)(h)(wide(params), [wide(g) for g in grads])
    for mine, theirs in zip(got, wanted, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
            mine,
            theirs,
        )


def test_without_a_threshold_it_is_adamw_and_momentum():
    grads = trajectories.gradients((4, 6))
    w = jnp.ones((4, 6))
    pairs = [
        (ADAMP(delta=0.0, weight_decay=0.1), optimizers.adamw(0.1, weight_decay=0.1)),
        (SGDP(delta=0.0, weight_decay=0.0), optimizers.sgd(0.1, momentum=0.9)),
    ]
    for mine, plain in pairs:
        got, want = (trajectories.parameters(tx, w, grads)[0] for tx in (mine, plain))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_one_channel_out_of_line_holds_back_all():
    g = jnp.array([[4.0, -3.0], [2.0, 2.0]])
    w = jnp.array(FIRST[0])
    rule = {"eps": 0.0, "wd_ratio": 0.1, "views": None, "channel_axis": 0}
    q, eased = links.tangent("me", g, g, w, delta=0.1, **rule)
    # The cosines are 0 and 0.7, that of the layer 0.07: above 0.1 / 2.
    np.testing.assert_array_equal(q, g)
    np.testing.assert_array_equal(eased, w)
    q, eased = links.tangent("me", g, g, w, delta=0.2, **rule)
    np.testing.assert_allclose(jnp.sum(q * w), 0.0, atol=1e-6)  # the layer as one row
    np.testing.assert_allclose(eased, 0.1 * w)


def test_layers_of_a_stack_are_found_one_by_one():
    matrix, across = jnp.array(FIRST[0]).T, jnp.array(FIRST[1][0]).T
    w, g = jnp.stack([matrix, matrix]), jnp.stack([across, matrix])
    rule = {"delta": 0.1, "eps": 0.0, "wd_ratio": 0.1, "channel_axis": None}
    tree = {"layers": {"kernel": w, "bias": w[:, 0]}}
    given = {"layers": {"kernel": g, "bias": g[:, 0]}}
    _, eased = links.tangent("me", given, given, tree, views=trees.matrix_views, **rule)
    np.testing.assert_allclose(eased["layers"]["kernel"], [0.1 * w[0], w[1]])
    np.testing.assert_array_equal(eased["layers"]["bias"], w[:, 0])


def test_weights_without_a_length_are_left_where_they_are():
    w, g = {"kernel": jnp.zeros((2, 2))}, {"kernel": jnp.ones((2, 2))}
    for make in (ADAMP, SGDP):
        tx = make(eps=0.0) if make is SGDP else make()
        updates, _ = tx.update(g, tx.init(w), w)
        assert np.isfinite(updates["kernel"]).all() and np.all(updates["kernel"] < 0)


@pytest.mark.parametrize("make", [optimizers.adamp, optimizers.sgdp])
def test_what_makes_no_sense_is_refused_by_name(make):
    who = f"scale_by_{make.__name__}"
    with pytest.raises(ValueError, match=f"{who}: eps must be 0 or more, got -1e-08"):
        make(0.1, eps=-1e-8)
    with pytest.raises(ValueError, match=f"{who}: delta must be 0 or more"):
        make(0.1, delta=-1.0)
    params = {"up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}
    for axis in (2, -3, (0, 1), (0, 0), ()):
        tx = make(0.1, channel_axis=axis)
        with pytest.raises(ValueError, match=rf"{who}: leaf 'up/kernel' .*\(4, 6\)"):
            tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match=f"{who}: needs the parameters"):
        make(0.1).update(params, make(0.1).init(params))


def test_a_decay_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"b2 must be .* below 1, got 1\.0"):
        optimizers.adamp(0.1, b2=1.0)
