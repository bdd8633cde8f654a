"""MKOR: norms, resets, refreshes, what passes through, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, trees

PARAMS = {
    "up": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
}
GRADS = {
    "up": {
        "kernel": jnp.array([[1.0, -2.0], [0.5, 3.0], [2.0, 0.0]]),
        "bias": jnp.array([4.0, -1.0]),
    },
    "norm": {"scale": jnp.array([5.0, 6.0])},
}
STATS = {"up": (jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, -0.7]))}


def run(tx, steps, stats=STATS, **extra):
    """Updates with one gradient; returns them and the last state."""
    state, seen = tx.init(PARAMS), []
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, PARAMS, layer_stats=stats, **extra)
        seen.append(updates)
    return seen, state


def matrix(layer):
    return np.concatenate([layer["kernel"], layer["bias"][None]])


def norms(layer):
    return np.linalg.norm(layer["kernel"]) + np.linalg.norm(layer["bias"])


def test_the_first_refresh_forgets_its_vectors():
    (first, second), _ = run(optimizers.scale_by_mkor(every=1), 2)
    np.testing.assert_allclose(matrix(first["up"]), matrix(GRADS["up"]), rtol=1e-6)
    assert np.abs(matrix(second["up"]) - matrix(GRADS["up"])).max() > 0.1


def test_the_update_has_the_gradient_s_sum_of_two_norms():
    seen, _ = run(optimizers.scale_by_mkor(every=1), 3)
    np.testing.assert_allclose(norms(seen[-1]["up"]), norms(GRADS["up"]), rtol=1e-6)
    plain, _ = run(optimizers.scale_by_mkor(every=1, rescale=False), 3)
    ratio = norms(plain[-1]["up"]) / norms(GRADS["up"])
    assert ratio < 0.9
    np.testing.assert_allclose(
        matrix(plain[-1]["up"]), ratio * matrix(seen[-1]["up"]), rtol=1e-5
    )


def test_what_is_no_layer_passes_through():
    seen, state = run(optimizers.scale_by_mkor(every=1), 2)
    np.testing.assert_array_equal(seen[1]["norm"]["scale"], GRADS["norm"]["scale"])
    assert [x.shape for x in state.input_inverses] == [(1, 4, 4)]
    assert [x.shape for x in state.output_inverses] == [(1, 2, 2)]


@pytest.mark.parametrize("rule", ["code", "exact", "paper"])
def test_two_refreshes_follow_the_rule(rule):
    _, state = run(optimizers.scale_by_mkor(every=1, rule=rule, largest=np.inf), 3)
    a, g = np.append(STATS["up"][0], 1.0), np.asarray(STATS["up"][1])
    c = 0.95
    for v, got in ((a, state.input_inverses), (g, state.output_inverses)):
        f = np.eye(len(v))
        for _ in range(2):
            fv = f @ v
            if rule == "exact":
                f = (f - (1 - c) * np.outer(fv, fv) / (c + (1 - c) * v @ fv)) / c
            elif rule == "code":
                f = c * f + (1 - c) * np.eye(len(v))
                fv = f @ v
                f = f - np.outer(fv, fv) / (1 + v @ fv)
            else:
                gain = (1 - c) / (c**2 * (1 + c * (1 - c) * v @ fv))
                f = c * f + gain * np.outer(fv, fv)
        np.testing.assert_allclose(got[0][0], f, rtol=1e-5, atol=1e-6)


def test_a_refresh_happens_each_every_steps_and_throughout_the_warmup():
    tx = optimizers.scale_by_mkor(every=4, warmup_steps=3)
    state, changed = tx.init(PARAMS), []
    for _ in range(9):
        before = state.input_inverses[0]
        _, state = tx.update(GRADS, state, PARAMS, layer_stats=STATS)
        changed.append(bool(np.any(before != state.input_inverses[0])))
    # The first refresh sets what is there already: the identity.
    assert changed == [False, True, True, False, True, False, False, False, True]


def test_a_grown_factor_resets_both_at_the_next_refresh():
    tx = optimizers.scale_by_mkor(every=1, rule="exact", decay=0.5, largest=1.5)
    state, seen = tx.init(PARAMS), []
    for _ in range(4):
        _, state = tx.update(GRADS, state, PARAMS, layer_stats=STATS)
        identity = np.array_equal(state.input_inverses[0][0], np.eye(4))
        seen.append((identity, bool(state.unstable[0][0])))
    # Where no vector points the exact rule doubles the factor in one refresh.
    assert seen == [(True, False), (False, True), (True, False), (False, True)]


def test_the_blend_pulls_a_grown_factor_towards_the_identity_at_once():
    tx = optimizers.scale_by_mkor(
        every=1, rule="exact", decay=0.5, stabilizer="blend", largest=1.5, blend=0.25
    )
    free = optimizers.scale_by_mkor(every=1, rule="exact", decay=0.5, largest=np.inf)
    _, state = run(tx, 2)
    _, loose = run(free, 2)
    want = 0.75 * loose.input_inverses[0][0] + 0.25 * np.eye(4)
    np.testing.assert_allclose(state.input_inverses[0][0], want, rtol=1e-5, atol=1e-6)
    assert not state.unstable[0].any()


def test_vectors_are_clipped():
    wild = {"up": (jnp.array([1e6, -2.0, 0.5]), STATS["up"][1])}
    tame = {"up": (jnp.array([7.0, -2.0, 0.5]), STATS["up"][1])}
    tx = optimizers.scale_by_mkor(every=1, clip=7.0)
    got, want = run(tx, 2, wild)[0][1], run(tx, 2, tame)[0][1]
    np.testing.assert_array_equal(matrix(got["up"]), matrix(want["up"]))


def test_whole_layers_may_be_routed():
    labels = {"up": "mine", "norm": "rest"}
    tx = optax.partition(
        {"mine": optimizers.scale_by_mkor(every=1), "rest": optax.scale(-1.0)}, labels
    )
    alone, _ = run(optimizers.scale_by_mkor(every=1), 2)
    seen, _ = run(tx, 2)
    np.testing.assert_array_equal(matrix(seen[1]["up"]), matrix(alone[1]["up"]))
    np.testing.assert_array_equal(seen[1]["norm"]["scale"], -GRADS["norm"]["scale"])


def test_layers_of_one_shape_share_one_update():
    """The compiled program does not grow with the number of layers."""

    def dots(layers):
        params = {f"l{i}": PARAMS["up"] for i in range(layers)}
        stats = dict.fromkeys(params, STATS["up"])
        tx = optimizers.scale_by_mkor(every=1)
        step = jax.jit(functools.partial(tx.update, layer_stats=stats))
        return step.lower(params, tx.init(params)).as_text().count("dot_general")

    assert dots(2) == dots(5)


@pytest.mark.parametrize("make", [optimizers.scale_by_mkor, optimizers.mkor])
def test_bad_arguments_are_refused_when_the_chain_is_built(make):
    rate = {} if make is optimizers.scale_by_mkor else {"learning_rate": 0.1}
    with pytest.raises(ValueError, match=r"one of .*'code'.*got 'newton'"):
        make(**rate, rule="newton")
    with pytest.raises(ValueError, match=r"one of .*'blend'.*got 'clip'"):
        make(**rate, stabilizer="clip")
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        make(**rate, every=0)


def test_missing_and_misshapen_statistics_are_named():
    tx = optimizers.scale_by_mkor()
    state = tx.init(PARAMS)
    with pytest.raises(TypeError, match=r"scale_by_mkor: .*layer_stats.*lab\.capture"):
        tx.update(GRADS, state, PARAMS)
    with pytest.raises(ValueError, match=r"nothing for 'up', but for \['down'\].*None"):
        tx.update(GRADS, state, PARAMS, layer_stats={"down": STATS["up"]})
    bad = {"up": (jnp.ones(4), jnp.ones(2))}
    with pytest.raises(ValueError, match=r"'up' has inputs \(4,\), wanted \(1, 3\)"):
        tx.update(GRADS, state, PARAMS, layer_stats=bad)
    rules = [("up/kernel", None)]
    views = functools.partial(trees.matrix_views, rules=rules)
    tx = optimizers.scale_by_mkor(views=views)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["up"]["kernel"], GRADS["up"]["kernel"])


def test_while_the_factors_are_the_identity_it_is_its_inner_sgd_bit_for_bit():
    ours, sgd = optimizers.mkor(0.1, every=10), optimizers.sgd(0.1, momentum=0.9)
    states = ours.init(PARAMS), sgd.init(PARAMS)
    for _ in range(4):
        got, first = ours.update(GRADS, states[0], PARAMS, layer_stats=STATS)
        want, second = sgd.update(GRADS, states[1], PARAMS)
        states = first, second
        jax.tree.map(np.testing.assert_array_equal, got, want)
