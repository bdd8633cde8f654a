"""Normalize-and-project: norms stay, step after step, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, trees
from tests.optimizers import trajectories


def chained(rate=0.1, **more):
    return optax.chain(optax.sgd(rate), optimizers.normalize_and_project(**more))


def step(tx, w, g):
    updates, _ = jax.jit(tx.update)(g, tx.init(w), w)
    return jax.tree.map(np.add, w, updates)


def test_a_step_ends_on_the_sphere_of_the_initial_norm():
    with jax.enable_x64(True):
        got = step(chained(), jnp.array([[3.0, 4.0]]), jnp.array([[10.0, 0.0]]))
    # (3, 4) - (1, 0) = (2, 4), of length sqrt(20), brought to length 5.
    np.testing.assert_allclose(got, [[5**0.5, 2 * 5**0.5]], rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "allowed"), [("float32", 1e-5), ("bfloat16", 2e-3)], ids=str
)
def test_a_norm_stays_for_a_thousand_steps(dtype, allowed):
    tx = chained(1.0)
    w = {"kernel": jnp.asarray([[3.0, 4.0], [0.0, 0.0]], dtype)}

    def body(carry, key):
        w, state = carry
        g = {"kernel": jax.random.normal(key, (2, 2), w["kernel"].dtype)}
        updates, state = tx.update(g, state, w)
        w = optax.apply_updates(w, updates)
        wide = w["kernel"].astype(jnp.float32)
        return (w, state), (jnp.linalg.norm(wide), wide[0, 0])

    @jax.jit
    def run(w):
        keys = jax.random.split(jax.random.key(0), 1000)
        return jax.lax.scan(body, (w, tx.init(w)), keys)[1]

    norms, entries = run(w)
    # Rounding does not add up: each projection starts from rho again. A bfloat16 entry
    # is off by 1/512 of itself at most, and so is the norm.
    assert 0 < np.abs(norms / 5 - 1).max() < allowed
    assert np.ptp(entries) > 5


def test_each_matrix_of_a_stack_has_its_norm_and_what_is_no_kernel_is_free():
    shapes = {
        "layers": {"kernel": (3, 4, 6), "bias": (3, 6)},
        "conv": {"kernel": (3, 3, 2, 4)},
        "embed": {"embedding": (7, 4)},
        "empty": {"kernel": (0, 4)},
    }
    w, g = (
        jax.tree.map(
            lambda s, k=k: trajectories.gradients(s, 1, seed=k)[0],
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for k in (0, 1)
    )
    plain, got = step(optax.sgd(0.1), w, g), step(chained(), w, g)
    for name, axes in (("layers", (1, 2)), ("conv", (0, 1, 2, 3))):
        before, after, free = (x[name]["kernel"] for x in (w, got, plain))
        rho, length = (np.sqrt(np.sum(x * x, axes)) for x in (before, after))
        np.testing.assert_allclose(length, rho, rtol=1e-6)
        assert np.abs(after - free).max() > 1e-3
    for name, part in (("layers", "bias"), ("embed", "embedding"), ("empty", "kernel")):
        np.testing.assert_array_equal(got[name][part], plain[name][part])
    state = optimizers.normalize_and_project().init(w)
    assert (state.norms.shape, state.norms.dtype) == ((4,), jnp.float32)


def test_twice_the_norm_at_four_times_the_rate_turns_alike():
    """The loss depends on the direction of w: its gradient shrinks as w grows."""
    target = jnp.asarray(trajectories.gradients((3, 4), steps=1)[0])

    def loss(w):
        return -jnp.vdot(w, target) / jnp.linalg.norm(w)

    @jax.jit
    def directions(size, rate):
        tx, w = chained(rate), size * jnp.ones((3, 4))

        def body(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            w = optax.apply_updates(w, updates)
            return (w, state), w / jnp.linalg.norm(w)

        return jax.lax.scan(body, (w, tx.init(w)), length=5)[1]

    one = directions(1.0, 0.2)
    np.testing.assert_allclose(directions(2.0, 0.8), one, rtol=1e-4, atol=1e-6)
    assert np.abs(directions(2.0, 0.2) - one).max() > 0.01


def test_every_third_step_is_projected():
    w, tx = jnp.full((2, 2), 3.0), chained(every=3)
    points, state = trajectories.parameters(tx, w, [jnp.eye(2)] * 6, compiled=True)
    plain, _ = trajectories.parameters(optax.sgd(0.1), w, [jnp.eye(2)] * 6)
    np.testing.assert_array_equal(points[:2], plain[:2])
    norms = np.linalg.norm(points, axis=(1, 2))
    np.testing.assert_allclose(norms[[2, 5]], 6.0, rtol=1e-6)
    assert np.all(norms[[0, 1, 3, 4]] < 5.999)
    assert int(state[1].count) == 6


def test_what_starts_at_zero_or_lands_there_moves_freely():
    zero, one = jnp.zeros((2, 2)), jnp.eye(2)
    np.testing.assert_array_equal(step(chained(), zero, one), -0.1 * one)
    np.testing.assert_array_equal(step(chained(1.0), one, one), zero)
    # From there the next step has the norm again.
    points, _ = trajectories.parameters(chained(1.0), one, [one, one])
    np.testing.assert_allclose(np.linalg.norm(points[1]), 2**0.5, rtol=1e-6)


def test_the_norms_of_a_restored_state_are_those_of_the_first_step():
    tx, w = chained(), jnp.full((2, 2), 3.0)
    _, state = trajectories.parameters(tx, w, [jnp.eye(2)])
    saved = jax.tree.map(np.asarray, state)
    (last,), _ = trajectories.parameters(tx, 7 * w, [jnp.eye(2)], saved)
    np.testing.assert_allclose(np.linalg.norm(last), 6.0, rtol=1e-6)


def test_views_and_masks_choose_the_kernels():
    w = {name: {"kernel": jnp.eye(2)} for name in "ab"}
    views = trees.matrix_views(w, rules=[("b", None)])
    mask = {"a": {"kernel": True}, "b": {"kernel": False}}
    for more in ({"views": views}, {"mask": mask}, {"mask": lambda tree: mask}):
        got = step(chained(0.5, **more), w, jax.tree.map(jnp.ones_like, w))
        assert np.linalg.norm(got["a"]["kernel"]) == pytest.approx(2**0.5)
        np.testing.assert_array_equal(got["b"]["kernel"], jnp.eye(2) - 0.5)


def test_bad_input_is_named():
    tx, w = optimizers.normalize_and_project(), jnp.ones((2, 2))
    with pytest.raises(TypeError, match=r"normalize_and_project: needs the parameters"):
        tx.update(w, tx.init(w))
    for every in (0, -1, 2.0):
        with pytest.raises(ValueError, match=f"every must be an integer.* got {every}"):
            optimizers.normalize_and_project(every=every)
