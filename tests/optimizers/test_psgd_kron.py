"""PSGD-Kron: whitening, its limits, when it refreshes and what costs nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories

SHAPE = (4, 6)
SOLVE = 'custom_call_target="lapack_strsm_ffi"'
ALWAYS = {"probability": 1.0}


@functools.cache
def compiled(**settings):
    """Tests share what is compiled: the key is in the state, not in the program."""
    tx = optimizers.scale_by_psgd_kron(**settings)
    return tx.init, jax.jit(tx.update)


def after(settings, *gradients, key=0):
    """Returns the last update and state; the leaf is called 'kernel'."""
    _, update = compiled(**settings)
    tx = optimizers.scale_by_psgd_kron(**settings, key=jax.random.key(key))
    state = tx.init({"kernel": gradients[0]})
    for gradient in gradients:
        updates, state = update({"kernel": gradient}, state)
    return np.asarray(updates["kernel"]), state


def sizes(settings, shape, **limits):
    """Returns whether each axis of a tensor has a full factor."""
    tx = optimizers.scale_by_psgd_kron(views="axes", diagonal=settings, **limits)
    (factors,) = tx.init({"w": jnp.ones(shape)}).factors
    return [q.ndim == 3 for q in factors]


@pytest.fixture(name="gradients")
def _gradients():
    return [jnp.asarray(g) for g in trajectories.gradients(SHAPE)]


def test_it_whitens_rows_of_different_size():
    tx = optimizers.scale_by_psgd_kron(b1=0.0, **ALWAYS)
    scale = jnp.array([[1.0], [4.0], [0.25]])

    def step(state, key):
        g = {"kernel": scale * jax.random.normal(key, (3, 8))}
        updates, state = tx.update(g, state)
        return state, jnp.mean(updates["kernel"] ** 2)

    state = tx.init({"kernel": scale * jnp.ones((3, 8))})
    keys = jax.random.split(jax.random.key(1), 3000)
    state, squares = jax.jit(functools.partial(jax.lax.scan, step))(state, keys)
    q = np.asarray(state.factors[0][0][0])
    p = q.T @ q / (q.T @ q)[0, 0]
    # E[g g^T]^(-1/2) is diag(1, 1/4, 4).
    np.testing.assert_allclose(np.diag(p), [1, 0.25, 4], rtol=0.2)
    assert np.abs(p - np.diag(np.diag(p))).max() <= 0.1
    assert 0.9 <= np.sqrt(np.mean(squares[-500:])) <= 1.1
    for q in state.factors[0]:
        np.testing.assert_array_equal(q, np.triu(q))


def test_updates_have_at_most_their_root_mean_square(gradients):
    def rms(x):
        return np.sqrt(np.mean(x**2))

    # P starts as the identity; ten thousand times a gradient is far above.
    big = 1e4 * gradients[0]
    got, _ = after({}, big)
    assert rms(got) == pytest.approx(1.1, rel=1e-5)
    free, _ = after({"clip_rms": None}, big)
    np.testing.assert_allclose(got, 1.1 * free / rms(free), rtol=1e-5)
    entries, _ = after({"clip_entries": 0.5}, big)
    np.testing.assert_allclose(entries, np.clip(got, -0.5, 0.5), rtol=1e-6)
    # Each matrix of a stack has its own limit.
    pair = jnp.stack([big, 1e-4 * gradients[1]])
    both, _ = after({}, pair)
    assert rms(both[0]) == pytest.approx(1.1, rel=1e-5) and rms(both[1]) < 0.01


def test_without_gradients_it_stays_finite():
    tx = optimizers.scale_by_psgd_kron(**ALWAYS)
    zero = {"kernel": jnp.zeros(SHAPE)}

    def step(state, _):
        updates, state = tx.update(zero, state)
        return state, updates["kernel"]

    state = tx.init(zero)
    state, updates = jax.jit(lambda s: jax.lax.scan(step, s, length=2000))(state)
    np.testing.assert_array_equal(updates, 0)
    assert all(np.isfinite(q).all() for q in jax.tree.leaves(state.factors))
    # P has grown to 1 / damping and no further, so a gradient finds a finite step.
    q_left, q_right = (np.asarray(q[0], float) for q in state.factors[0])
    top = np.linalg.norm(q_left, 2) * np.linalg.norm(q_right, 2)
    assert 1e8 < top**2 < 1e11
    updates, _ = compiled()[1]({"kernel": jnp.ones(SHAPE)}, state)
    assert np.isfinite(updates["kernel"]).all()


def test_the_refresh_follows_its_counter(gradients):
    # At probability 0.4 two and a half steps have passed at every third.
    tx = optimizers.scale_by_psgd_kron(probability=0.4)
    state, update, changed = tx.init({"kernel": gradients[0]}), jax.jit(tx.update), []
    for gradient in (gradients * 2)[:7]:
        before = state.factors
        _, state = update({"kernel": gradient}, state)
        changed.append(bool(np.any(before[0][0] != state.factors[0][0])))
    assert changed == [False, False, True, False, False, True, False]


def test_the_authors_schedule_falls_after_five_hundred_steps():
    counts = np.array([0, 500, 501, 1500, 4006, 4007, 10**6])
    got = optimizers.annealed_probability(counts)
    want = [1, 1, np.exp(-0.001), np.exp(-1), np.exp(-3.506), 0.03, 0.03]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    # One step below 1 and every second step is left out.
    init, update = compiled()
    state = init({"kernel": jnp.ones(SHAPE)})._replace(count=jnp.int32(499))
    waited = []
    for _ in range(6):
        _, state = update({"kernel": jnp.ones(SHAPE)}, state)
        waited.append(int(state.since))
    assert waited == [0, 0, 1, 0, 1, 0]


def test_other_steps_solve_nothing_and_equal_shapes_solve_once():
    params = {str(i): {"kernel": jnp.ones(SHAPE)} for i in range(3)}
    params["tall"] = {"kernel": jnp.ones((2, 6, 4))}
    tx = optimizers.scale_by_psgd_kron()
    text = jax.jit(tx.update).lower(params, tx.init(params)).compile().as_text()
    assert text.count(" conditional(") == 1
    # Two shapes, two sides, all of them in the branch.
    assert text.count(SOLVE) == 4
    entry = text[text.index("\nENTRY ") :]
    assert SOLVE not in entry
    quad = optimizers.scale_by_psgd_kron(geometry="QUAD")
    lowered = jax.jit(quad.update).lower(params, quad.init(params))
    assert "triangular_solve" not in lowered.as_text()


def test_the_factors_may_learn_from_the_bare_gradient(gradients):
    pair = gradients[0], -gradients[0]
    settings = {"b1": 0.5, "running_mean": True, "relative_damping": 0.0, **ALWAYS}
    # The mean of the pair is nothing; the gradients are not.
    mean, a = after(settings, *pair)
    np.testing.assert_array_equal(mean, 0)
    _, b = after({**settings, "whiten": "gradient"}, *pair)
    assert np.linalg.norm(b.factors[0][0]) < 0.95 * np.linalg.norm(a.factors[0][0])


def test_an_update_may_come_before_its_refresh(gradients):
    late = {"clip_rms": None, "refresh_first": False}
    first, state = after(late, gradients[0])
    np.testing.assert_allclose(first, gradients[0], rtol=1e-6)  # P was the identity
    soon, other = after({"clip_rms": None}, gradients[0])
    assert np.abs(soon - first).max() > 0.1
    np.testing.assert_allclose(state.factors[0][0], other.factors[0][0], rtol=1e-6)


def test_a_key_fixes_the_draws_and_equal_matrices_draw_alike(gradients):
    g = gradients[0]
    base, _ = after({}, g)
    again, _ = after({}, g)
    other, state = after({}, g, key=1)
    np.testing.assert_array_equal(base, again)
    assert np.abs(base - other).max() > 1e-3
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    # No neighbour, here a layer of a stack, changes what a matrix gets.
    pair, _ = after({}, jnp.stack([gradients[1], g]))
    np.testing.assert_allclose(pair[1], base, rtol=1e-5, atol=1e-6)


def test_which_factors_are_full():
    assert sizes("long", (3, 4)) == [True, True]
    assert sizes("long", (1, 4)) == [False, True]
    assert sizes("long", (3, 9), max_size=8) == [True, False]
    # 25 entries of 15, 9 of 15; none of 16 of 12.
    assert sizes("long", (5, 3), max_skew=1.0) == [False, True]
    assert sizes("long", (7,)) == [False]
    assert sizes("long", (7,), min_order=1) == [True]
    assert sizes("longest", (3, 4)) == [True, False]
    assert sizes("longest", (4, 4)) == [True, False]  # the last among equals
    assert sizes("longer", (4, 4)) == [True, True]
    assert sizes("longer", (5, 4)) == [False, True]
    assert sizes("longer", (7,), min_order=1) == [True]
    assert sizes("all", (3, 4, 2)) == [False, False, False]


def test_matrices_have_two_factors_and_tensors_one_for_each_axis():
    conv = {"conv": {"kernel": jnp.ones((2, 2, 3, 4))}}
    (own,) = optimizers.scale_by_psgd_kron().init(conv).factors
    assert [q.shape for q in own] == [(1, 12, 12), (1, 4, 4)]
    (own,) = optimizers.scale_by_psgd_kron(views="axes").init(conv).factors
    assert [q.shape[1:] for q in own] == [(n, n) for n in (2, 2, 3, 4)]
    layers = {"layers": {"kernel": jnp.ones((3, 4, 6))}}
    (own,) = optimizers.scale_by_psgd_kron().init(layers).factors
    assert [q.shape for q in own] == [(3, 4, 4), (3, 6, 6)]


def test_momentum_has_its_dtype_and_factors_are_float32(gradients):
    tx = optimizers.psgd_kron(0.1, accumulator_dtype=jnp.bfloat16)
    gradient = {"kernel": gradients[0].astype(jnp.bfloat16)}
    state = jax.eval_shape(tx.init, gradient)
    updates, state = jax.eval_shape(tx.update, gradient, state, gradient)
    assert updates["kernel"].dtype == jnp.bfloat16
    assert optax.tree.get(state, "momentum")[0].dtype == jnp.bfloat16
    assert optax.tree.get(state, "factors")[0][0].dtype == jnp.float32


def test_bad_arguments_are_refused_when_the_chain_is_built():
    for name, value in (
        ("whiten", "noise"),
        ("geometry", "QQ"),
        ("diagonal", "short"),
    ):
        with pytest.raises(ValueError, match=rf"{name} must be one of .*'{value}'"):
            optimizers.psgd_kron(0.1, **{name: value})
    for name in ("max_size", "min_order"):
        with pytest.raises(ValueError, match=f"{name} must be an integer .*got 0"):
            optimizers.psgd_kron(0.1, **{name: 0})
    with pytest.raises(ValueError, match=r"probes must be .*0 or more, got -1"):
        optimizers.psgd_kron(0.1, probes=-1)
    for chance in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"probability must be in .*got {chance}"):
            optimizers.psgd_kron(0.1, probability=chance)
    with pytest.raises(ValueError, match=r"scale_by_psgd_kron: leaf 'bias'.*rest="):
        optimizers.psgd_kron(0.1).init({"bias": jnp.ones(3)})
