"""QK-clip: logits come back to the threshold, and nothing else moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import links, optimizers
from tests.optimizers import trajectories


def leaf(*shape, seed=0):
    return jnp.asarray(trajectories.gradients(shape, steps=1, seed=seed)[0])


def attention(key_heads=2, layers=()):
    return {
        "query": {
            "kernel": leaf(*layers, 4, 2, 3),
            "bias": leaf(*layers, 2, 3, seed=1),
        },
        "key": {
            "kernel": leaf(*layers, 4, key_heads, 3, seed=2),
            "bias": leaf(*layers, key_heads, 3, seed=3),
        },
        "out": {"kernel": leaf(*layers, 2, 3, 4, seed=4)},
    }


def logits(weights, heads=2):
    """Logits of every pair of 5 positions, (heads, 5, 5)."""
    x = leaf(5, 4, seed=5)
    q, k = (
        jnp.einsum("td,dhe->hte", x, weights[side]["kernel"])
        + weights[side]["bias"][:, None, :]
        for side in ("query", "key")
    )
    k = jnp.repeat(k, heads // k.shape[0], axis=0)
    return jnp.einsum("hte,hse->hts", q, k) / 3**0.5


def clipped(params, updates, **largest):
    tx = optimizers.qk_clip(100.0)
    return tx.update(updates, tx.init(params), params, attn_max_logit=largest)[0]


def test_at_four_times_the_threshold_weights_are_halved_and_logits_quartered():
    params = {"attention": attention()}
    zero = jax.tree.map(jnp.zeros_like, params)
    largest = jnp.array([400.0, 50.0])
    moved = optax.apply_updates(params, clipped(params, zero, attention=largest))
    for side in ("query", "key"):
        for name in ("kernel", "bias"):
            old, new = (t["attention"][side][name] for t in (params, moved))
            np.testing.assert_array_equal(new[..., 0, :], old[..., 0, :] / 2)
            np.testing.assert_array_equal(new[..., 1, :], old[..., 1, :])
    before, after = (logits(t["attention"]) for t in (params, moved))
    np.testing.assert_allclose(after[0], before[0] / 4, rtol=1e-5)
    np.testing.assert_array_equal(after[1], before[1])


def test_below_the_threshold_every_update_passes_bit_for_bit():
    params = {"attention": attention()}
    updates = jax.tree.map(lambda p: 1e-3 * p + 1e-5, params)
    for calm in (50.0, 100.0, -3.0, np.inf, np.nan):
        got = clipped(params, updates, attention=jnp.array([50.0, calm]))
        jax.tree.map(np.testing.assert_array_equal, got, updates)


def test_it_scales_the_weights_as_they_will_be():
    params = {"attention": attention()}
    updates = jax.tree.map(lambda p: 0.5 * p, params)
    got = clipped(params, updates, attention=jnp.array([400.0, 400.0]))
    query, out = (got["attention"][name]["kernel"] for name in ("query", "out"))
    # (W + W / 2) / 2 is W - W / 4.
    want = -params["attention"]["query"]["kernel"] / 4
    np.testing.assert_allclose(query, want, atol=1e-6)
    np.testing.assert_array_equal(out, updates["attention"]["out"]["kernel"])


def test_with_grouped_keys_the_queries_take_it_all():
    params = {"attention": attention(key_heads=1)}
    zero = jax.tree.map(jnp.zeros_like, params)
    got = clipped(params, zero, attention=jnp.array([400.0, 50.0]))
    moved = optax.apply_updates(params, got)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(t["attention"]["key"] for t in (moved, params)),
    )
    before, after = (logits(t["attention"]) for t in (params, moved))
    np.testing.assert_allclose(after[0], before[0] / 4, rtol=1e-5)
    np.testing.assert_array_equal(after[1], before[1])


def test_scan_stacked_layers_have_their_own_heads():
    params = {"layers": {"attention": attention(layers=(3,))}}
    zero = jax.tree.map(jnp.zeros_like, params)
    largest = jnp.full((3, 2), 50.0).at[1, 0].set(400.0)
    got = clipped(params, zero, **{"layers/attention": largest})
    for name, axis in (("kernel", (1, 3)), ("bias", (2,))):
        changed = got["layers"]["attention"]["key"][name]
        touched = np.any(changed != 0, axis=axis)
        np.testing.assert_array_equal(touched, np.asarray(largest) > 100)


def test_at_the_end_of_a_chain_it_sees_the_step_that_will_be_taken():
    params = {"attention": attention()}
    tx = optax.chain(
        optax.identity(), links.scale_by_learning_rate(0.5), optimizers.qk_clip(100.0)
    )
    largest = {"attention": jnp.array([400.0, 400.0])}
    update = jax.jit(
        lambda g, state, params: tx.update(g, state, params, attn_max_logit=largest)
    )
    updates, _ = update(params, tx.init(params), params)
    moved = optax.apply_updates(params, updates)["attention"]["query"]["kernel"]
    np.testing.assert_allclose(
        moved, params["attention"]["query"]["kernel"] / 4, atol=1e-6
    )


def test_updates_keep_their_dtype():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), {"attention": attention()})
    got = clipped(params, params, attention=jnp.array([400.0, 50.0]))
    assert {x.dtype.name for x in jax.tree.leaves(got)} == {"bfloat16"}


def test_what_is_missing_or_does_not_fit_is_named():
    params = {"attention": attention()}
    tx = optimizers.qk_clip()
    with pytest.raises(TypeError, match="needs the extra argument attn_max_logit"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params), attn_max_logit={"attention": jnp.ones(2)})
    with pytest.raises(
        ValueError, match=r"missing \['attention'\], without queries and keys \['a'\]"
    ):
        clipped(params, params, a=jnp.ones(2))
    with pytest.raises(
        ValueError, match=r"leaf 'attention/query/bias' has shape \(2, 3\); with 3 head"
    ):
        clipped(params, params, attention=jnp.ones(3))
