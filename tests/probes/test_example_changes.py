"""What a step did to each example, on one device and eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import probes
from tests.probes import net
from tests.sharding import on_mesh

AFTER = jax.tree.map(lambda x: 0.9 * x, net.PARAMS)


@functools.partial(jax.jit, static_argnames=("k", "microbatch_size"))
def changes(before, after, batch, k=3, microbatch_size=None):
    return probes.example_changes(
        net.example_loss, before, after, batch, k=k, microbatch_size=microbatch_size
    )


@pytest.mark.parametrize("microbatch_size", [None, 1, 5, 32, 100])
def test_every_example_has_its_own_losses(microbatch_size):
    found = changes(net.PARAMS, AFTER, net.WHOLE, microbatch_size=microbatch_size)
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], net.WHOLE) for i in range(32)]
    for params, got in ((net.PARAMS, found.before), (AFTER, found.after)):
        wanted = [jax.jit(net.loss)(params, row) for row in rows]
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        np.mean(found.before), net.loss(net.PARAMS, net.WHOLE), rtol=1e-5
    )
    order = np.argsort(np.asarray(found.after - found.before))
    np.testing.assert_array_equal(found.fallen, order[:3])
    np.testing.assert_array_equal(found.risen, order[::-1][:3])


def test_a_loss_that_is_no_number_has_risen():
    x = jnp.array([1.0, np.nan, 2.0])
    found = probes.example_changes(lambda w, x: w * x, 0.0, 1.0, x, k=2)
    np.testing.assert_array_equal(found.risen, [1, 2])


@on_mesh.BOTH
def test_a_cut_batch_has_the_losses_of_one_device(axis_type):
    wanted = changes(net.PARAMS, AFTER, net.WHOLE)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        everywhere = NamedSharding(mesh, PartitionSpec())
        before, after = jax.device_put((net.PARAMS, AFTER), everywhere)
        batch = jax.device_put(net.WHOLE, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.device_get(jax.block_until_ready(changes(before, after, batch)))
    np.testing.assert_allclose(got.after, wanted.after, rtol=1e-5)
    np.testing.assert_array_equal(got.risen, wanted.risen)
    np.testing.assert_array_equal(got.fallen, wanted.fallen)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "k must be from 1 to the 3 examples, got 0"),
        ({"k": 4}, "got 4"),
        ({"microbatch_size": 0}, "microbatch_size must be 1 or more, got 0"),
        ({"batch": {"x": np.ones(3), "y": np.ones(2)}}, "one entry for each example"),
        ({"batch": 1.0}, "one entry for each example"),
    ],
)
def test_what_makes_no_sense_is_named(settings, said):
    settings = {"batch": jnp.ones(3), "k": 1, **settings}
    with pytest.raises(ValueError, match=f"example_changes: .*{said}"):
        probes.example_changes(jnp.multiply, 0.0, 1.0, **settings)
