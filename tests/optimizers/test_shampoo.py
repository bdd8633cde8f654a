"""Shampoo against published numbers, its blocks, grafts and guards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import kernels, optimizers
from tests.optimizers import trajectories

SHAPE = (4, 6)
SQUARE = jnp.array([[1.0, 2.0], [3.0, 4.0]])
PLAIN = {"b1": 0.0, "b2": 1.0, "graft": "none", "every": 1}


def after(tx, *gradients):
    """Returns the last update and state; the leaf is called 'kernel'."""
    state, update = tx.init({"kernel": gradients[0]}), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update({"kernel": gradient}, state)
    return np.asarray(updates["kernel"]), state


@pytest.fixture(name="gradients")
def _gradients():
    return [jnp.asarray(g) for g in trajectories.gradients(SHAPE)]


@pytest.mark.parametrize("root", [kernels.inverse_root, kernels.newton_inverse_root])
def test_the_first_step_is_the_polar_factor(root):
    update, _ = after(optimizers.scale_by_shampoo(**PLAIN, root=root), SQUARE)
    want = [[-0.51449576, 0.85749293], [0.85749293, 0.51449576]]
    # Condition 2e2 of the statistics times a few roundings.
    np.testing.assert_allclose(update, want, atol=1e-4)


def test_with_square_roots_it_is_the_inverse_transpose():
    tx = optimizers.scale_by_shampoo(**PLAIN, root_order=2)
    update, _ = after(tx, SQUARE)
    np.testing.assert_allclose(update, [[-2.0, 1.5], [1.0, -0.5]], rtol=1e-3)


@pytest.mark.parametrize("block_size", [6, 100])
def test_large_blocks_change_nothing(gradients, block_size):
    whole, _ = after(optimizers.scale_by_shampoo(every=1), *gradients)
    tx = optimizers.scale_by_shampoo(every=1, block_size=block_size)
    np.testing.assert_array_equal(after(tx, *gradients)[0], whole)


def test_a_block_is_a_matrix_of_its_own(gradients):
    got, _ = after(optimizers.scale_by_shampoo(every=1, block_size=4), *gradients)
    whole = optimizers.scale_by_shampoo(every=1)
    left, _ = after(whole, *[g[:, :4] for g in gradients])
    right, _ = after(whole, *[g[:, 4:] for g in gradients])
    np.testing.assert_allclose(got, np.hstack([left, right]), rtol=1e-5, atol=1e-6)


def test_the_graft_gives_the_norm(gradients):
    directions = {
        graft: after(
            optimizers.scale_by_shampoo(b1=0.0, graft=graft, every=1), *gradients
        )[0]
        for graft in ("none", "sgd", "adagrad", "rmsprop", "adam")
    }
    g, b2 = np.stack(gradients).astype(np.float64), 0.999
    average = sum((1 - b2) * b2 ** (3 - t) * g[t] ** 2 for t in range(4))
    norms = {
        "sgd": np.linalg.norm(g[-1]),
        "adagrad": np.linalg.norm(g[-1] / np.sqrt(np.sum(g**2, axis=0))),
        "rmsprop": np.linalg.norm(g[-1] / np.sqrt(average)),
        "adam": np.linalg.norm(g[-1] / np.sqrt(average / (1 - b2**4))),
    }
    unit = directions["none"] / np.linalg.norm(directions["none"])
    for graft, norm in norms.items():
        np.testing.assert_allclose(np.linalg.norm(directions[graft]), norm, rtol=1e-4)
        np.testing.assert_allclose(directions[graft] / norm, unit, atol=1e-4)


def test_before_the_first_roots_it_is_the_graft(gradients):
    tx = optimizers.scale_by_shampoo(every=3)
    first, state = after(tx, *gradients[:2])
    m = (0.9 * 0.1 * gradients[0] + 0.1 * gradients[1]) / (1 - 0.9**2)
    squares = 0.999 * gradients[0] ** 2 + gradients[1] ** 2
    v = 0.001 * squares / (1 - 0.999**2)
    np.testing.assert_allclose(first, m / np.sqrt(v), rtol=1e-4)
    assert not np.any(state.roots[0][0])
    # Here the third step has roots, the fourth has the same.
    _, third = after(tx, *gradients[:3])
    _, fourth = after(tx, *gradients)
    assert np.any(third.roots[0][0])
    np.testing.assert_array_equal(third.roots[0][0], fourth.roots[0][0])
    early = optimizers.scale_by_shampoo(every=3, start=2)
    assert np.any(after(early, *gradients[:2])[1].roots[0][0])


def test_a_root_that_is_given_up_leaves_the_last_one(gradients):
    def failing(x, p, *, ridge):
        bad = jnp.trace(x, axis1=-2, axis2=-1) > 300
        root = kernels.inverse_root(x, p, ridge=ridge)
        return jnp.where(bad[:, None, None], jnp.nan, root)

    tx = optimizers.scale_by_shampoo(b2=1.0, graft="sgd", every=1, root=failing)
    traces = np.cumsum([np.sum(np.square(g)) for g in gradients])
    assert traces[0] < 300 < traces[1]
    _, first = after(tx, gradients[0])
    update, second = after(tx, *gradients[:2])
    assert np.isfinite(update).all()
    np.testing.assert_array_equal(first.roots[0][0], second.roots[0][0])


def test_newton_and_eigenvalues_give_one_update(gradients):
    ridge = {"eps": 1e-4, "every": 1}
    newton = optimizers.scale_by_shampoo(**ridge, root=kernels.newton_inverse_root)
    want, _ = after(optimizers.scale_by_shampoo(**ridge), *gradients)
    np.testing.assert_allclose(after(newton, *gradients)[0], want, atol=1e-4)
    relative = functools.partial(kernels.inverse_root, relative=True)
    tx = optimizers.scale_by_shampoo(**ridge, root=relative)
    other, _ = after(tx, *gradients)
    assert 1e-6 < np.abs(other - want).max() < 0.1


def test_every_size_of_factor_has_one_eigendecomposition():
    params = {str(i): {"kernel": jnp.ones(SHAPE)} for i in range(3)}
    params["tall"] = {"kernel": jnp.ones((2, 6, 4))}
    tx = optimizers.scale_by_shampoo()
    text = jax.jit(tx.update).lower(params, tx.init(params)).compile().as_text()
    assert text.count('custom_call_target="lapack_ssyevd_ffi"') == 2
    assert text.count(" conditional(") == 1


def test_huge_gradients_leave_the_statistics(gradients):
    tx = optimizers.scale_by_shampoo(every=1, graft="sgd")
    _, before = after(tx, *gradients)
    update, state = after(tx, *gradients, 1e30 * gradients[0])
    assert np.isfinite(update).all()
    np.testing.assert_array_equal(state.statistics[0][0], before.statistics[0][0])


def test_tensors_and_vectors_may_have_a_factor_an_axis():
    params = {"conv": jnp.ones((2, 3, 4)), "bias": jnp.ones(3), "scale": jnp.ones(())}
    tx = optimizers.scale_by_shampoo(views="axes", every=1)
    updates, state = tx.update(params, tx.init(params))
    assert [x.shape for x in jax.tree.leaves(updates)] == [(3,), (2, 3, 4), ()]
    sizes = sorted(x.shape[-1] for x in jax.tree.leaves(state.roots))
    assert sizes == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("axis_type", ["Explicit", "Auto"])
def test_on_a_mesh_the_roots_are_those_of_one_device(axis_type):
    # The suite's promise ends before the row's first roots: what they amplify of the
    # rounding is more than it allows.
    mesh = jax.make_mesh((8,), ("d",), axis_types=(getattr(AxisType, axis_type),))
    gradients = trajectories.gradients((16, 8), steps=2)
    trees = [{"up": {"kernel": g}, "down": {"kernel": 2 * g}} for g in gradients]
    specs = {"up": {"kernel": P("d")}, "down": {"kernel": P(None, "d")}}

    def run(place):
        tx = optimizers.scale_by_shampoo(every=1, eps=1e-2)
        state, update = tx.init(place(trees[0])), jax.jit(tx.update)
        for tree in trees:
            updates, state = update(place(tree), state)
        return updates, state

    want, _ = run(lambda tree: jax.tree.map(jnp.asarray, tree))
    with jax.set_mesh(mesh):
        got, state = run(
            lambda tree: jax.tree.map(
                lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
                tree,
                specs,
            )
        )
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.roots))
    for name in want:
        np.testing.assert_allclose(got[name]["kernel"], want[name]["kernel"], atol=1e-3)


def test_bad_arguments_are_refused_when_the_chain_is_built():
    with pytest.raises(ValueError, match=r"one of .*'adam'.*got 'lion'"):
        optimizers.shampoo(0.1, graft="lion")
    for name in ("every", "start", "block_size"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            optimizers.shampoo(0.1, **{name: 0})
    with pytest.raises(ValueError, match=r"b2=1 sums.*graft='adam'.*graft_b2"):
        optimizers.shampoo(0.1, b2=1.0)
    with pytest.raises(ValueError, match=r"scale_by_shampoo: leaf 'bias'.*rest="):
        optimizers.shampoo(0.1).init({"bias": jnp.ones(3)})
