"""Layers too large to be laid together: values, and what they send on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import links, sharding

SHAPE = (512, 128)  # each is taken alone
DELTAS = {"channels": 20.0, "layers": 8.0, "none": 0.0}


def tangent(q, g, w, delta=20.0):
    rule = {"eps": 1e-8, "wd_ratio": 0.5, "channel_axis": -1, "views": None}
    return links.tangent("me", q, g, w, delta=delta, **rule)


def trees(layers):
    random = np.random.default_rng(0)
    draw = [random.normal(size=SHAPE).astype(np.float32) for _ in range(3 * layers)]
    q, g, w = ({f"{i}": x for i, x in enumerate(draw[k::3])} for k in range(3))
    # Channels whose gradient is along the weights: only the layer as a whole may pass.
    w = {name: x + np.sign(np.arange(128) - 63.5) * g[name] for name, x in w.items()}
    return q, g, w


def by_hand(q, g, w, kind):
    """The definition, in float64."""
    q, g, w = (np.asarray(x, np.float64) for x in (q, g, w))
    if kind == "none":
        return q, w
    axes = 0 if kind == "channels" else (0, 1)
    n = w / np.linalg.norm(w, axis=axes, keepdims=True)
    return q - n * np.sum(n * q, axis=axes, keepdims=True), 0.5 * w


@pytest.mark.parametrize("kind", DELTAS)
def test_a_large_layer_follows_the_definition(kind):
    q, g, w = (tree["0"] for tree in trees(1))
    got = tangent(q, g, w, delta=DELTAS[kind])
    for mine, theirs in zip(got, by_hand(q, g, w, kind), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("spec", [("d",), (None, "d")], ids=["rows", "columns"])
def test_on_a_mesh_more_large_layers_send_no_more_often(axis_type, spec):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    where = NamedSharding(mesh, PartitionSpec(*spec))
    counts = []
    with jax.set_mesh(mesh):
        for layers in (1, 3):
            placed = jax.device_put(trees(layers), where)
            counts.append(sharding.collectives(tangent, *placed).counts)
        got = jax.jit(tangent)(*placed)
    assert counts[0] == counts[1]
    assert set(counts[0]) == {"all_reduce"}
    wanted = tangent(*trees(3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        got,
        wanted,
    )


def test_a_huge_gradient_and_channels_of_every_size_do_not_overflow():
    q, g, w = (tree["0"] for tree in trees(1))
    sizes = np.float32(10.0) ** np.linspace(-18, 15, 128, dtype=np.float32)
    for huge in (1e-30, 1e30):
        free, eased = tangent(q, jnp.float32(huge) * g, sizes * w, delta=30.0)
        n = (sizes * w).astype(np.float64)
        n /= np.linalg.norm(n, axis=0) + 1e-8
        np.testing.assert_allclose(free, q - n * np.sum(n * q, 0), atol=1e-4)
        np.testing.assert_allclose(eased, 0.5 * sizes * w, rtol=1e-6)
