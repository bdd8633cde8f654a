"""M-FAC against dense solves, its window, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import optimizers
from tests.optimizers import trajectories


def test_the_first_direction_has_the_published_numbers():
    g = jnp.array([3.0, 4.0])
    tx = optimizers.scale_by_mfac(window=4, damping=1e-5)
    updates, _ = tx.update(g, tx.init(g))
    # g / (damping + |g|^2 / 4)
    np.testing.assert_allclose(updates, [0.47999923, 0.63999898], rtol=1e-6)


def test_after_the_window_wraps_only_its_gradients_count():
    m, damping = 3, 0.1
    grads = [
        {"a": g[:4].reshape(2, 2), "b": g[4:]}
        for g in trajectories.gradients((7,), steps=m + 3, dtype=np.float64)
    ]
    with jax.enable_x64(True):
        tx = optimizers.scale_by_mfac(window=m, damping=damping)
        state = tx.init(jax.tree.map(jnp.asarray, grads[0]))
        for g in grads:
            updates, state = tx.update(jax.tree.map(jnp.asarray, g), state)
    flat = [np.concatenate([g["a"].ravel(), g["b"]]) for g in grads]
    fisher = damping * np.eye(7) + sum(np.outer(g, g) for g in flat[-m:]) / m
    got = np.concatenate([updates["a"].ravel(), updates["b"]])
    np.testing.assert_allclose(got, np.linalg.solve(fisher, flat[-1]), rtol=1e-8)


def test_the_gradient_is_in_the_window_before_it_is_multiplied():
    g = jnp.array([3.0, 4.0])
    tx = optimizers.scale_by_mfac(window=1, damping=1e-3)
    updates, _ = tx.update(g, tx.init(g))
    # Without it the direction would be g / damping, 3000 and 4000.
    np.testing.assert_allclose(updates, g / 25.001, rtol=1e-6)


def test_the_average_has_a_weight_on_the_direction_and_no_correction():
    g = jnp.array([3.0, 4.0])
    plain = optimizers.scale_by_mfac(window=2, damping=1.0)
    averaged = optimizers.scale_by_mfac(window=2, damping=1.0, b1=0.75)
    want, _ = plain.update(g, plain.init(g))
    got, _ = averaged.update(g, averaged.init(g))
    np.testing.assert_allclose(got, 0.25 * want, rtol=1e-6)


def test_l2_enters_the_window():
    w, g = jnp.array([1.0, -2.0]), jnp.array([3.0, 4.0])
    coupled = optimizers.mfac(1.0, window=2, damping=1.0, l2=0.5)
    updates, _ = coupled.update(g, coupled.init(w), w)
    whole = g + 0.5 * w
    want = -whole / (1 + whole @ whole / 2)
    np.testing.assert_allclose(updates, want, rtol=1e-6)


def test_equal_gradients_stay_finite_and_point_along_the_gradient():
    g = jnp.asarray(trajectories.gradients((20,))[0])
    tx = optimizers.scale_by_mfac(window=8)
    state = tx.init(g)
    for _ in range(12):
        updates, state = tx.update(g, state)
    want = g / (g @ g)  # m / k |g|^2 for a window full of one gradient
    # Eight equal rows: condition 8 / (32 eps), most of float32 is lost.
    np.testing.assert_allclose(updates, want, atol=0.5 * float(abs(want).max()))
    assert float(updates @ g) > 0


def test_a_window_in_bfloat16_halves_the_state_and_nearly_keeps_the_direction():
    grads = trajectories.gradients((40,), steps=6)
    wide = optimizers.scale_by_mfac(window=4, damping=1.0)
    narrow = optimizers.scale_by_mfac(
        window=4, damping=1.0, accumulator_dtype=jnp.bfloat16
    )
    states = [wide.init(jnp.zeros(40)), narrow.init(jnp.zeros(40))]
    assert states[1].window.dtype == jnp.bfloat16
    assert states[1].gram.dtype == jnp.float32
    for g in grads:
        want, states[0] = wide.update(jnp.asarray(g), states[0])
        got, states[1] = narrow.update(jnp.asarray(g), states[1])
        np.testing.assert_allclose(got, want, atol=0.02 * abs(want).max())


def test_the_window_lies_where_the_parameters_lie():
    mesh = jax.make_mesh((8,), ("x",))
    place = NamedSharding(mesh, PartitionSpec("x", None))
    with jax.set_mesh(mesh):
        params = jax.device_put(np.ones((8, 3), np.float32), place)
        tx = optimizers.scale_by_mfac(window=4)
        state = tx.init(params)
        _, after = jax.jit(tx.update)(params, state)
    for window in (state.window, after.window):
        assert window.sharding.spec == PartitionSpec(None, "x", None)
    assert after.gram.sharding.is_fully_replicated


def test_a_step_reads_the_window_twice_and_multiplies_four_times_its_size():
    m, d = 16, 4096
    params = {"kernel": jnp.zeros((64, 64))}
    tx = optimizers.scale_by_mfac(window=m, flat=True)
    step = jax.jit(tx.update, donate_argnums=1)
    cost = step.lower(params, tx.init(params)).compile().cost_analysis()
    assert cost["flops"] <= 1.15 * 4 * m * d
    assert cost["bytes accessed"] <= 2.8 * 4 * m * d


def test_flat_rows_give_the_same_directions():
    params = {"kernel": jnp.zeros((2, 3)), "scale": jnp.zeros(())}
    grads = [
        {"kernel": jnp.asarray(g[:6]).reshape(2, 3), "scale": jnp.asarray(g[6])}
        for g in trajectories.gradients((7,), steps=4)
    ]
    txs = [optimizers.scale_by_mfac(window=3, damping=0.1, flat=f) for f in (0, 1)]
    states = [tx.init(params) for tx in txs]
    assert states[1].window["kernel"].shape == (3, 6)
    for g in grads:
        (want, states[0]), (got, states[1]) = (
            tx.update(g, state) for tx, state in zip(txs, states, strict=True)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            got,
            want,
        )


def test_it_learns_from_noisy_gradients():
    curvature = jnp.logspace(-2, 0, 10)
    noise = trajectories.gradients((10,), steps=200)
    tx = optimizers.mfac(0.01, window=32, damping=1e-3)
    params, state = jnp.ones(10), tx.init(jnp.ones(10))
    update = jax.jit(tx.update)
    for z in noise:
        updates, state = update(curvature * params + 0.1 * z, state, params)
        params = optax.apply_updates(params, updates)
    assert 0.5 * float(curvature @ params**2) < 0.2 * 0.5 * float(jnp.sum(curvature))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"damping": 0.0}, r"damping must be above 0, got 0\.0"),
    ],
)
@pytest.mark.parametrize("make", [optimizers.scale_by_mfac, optimizers.mfac])
def test_bad_arguments_are_refused(make, arguments, message):
    rate = {} if make is optimizers.scale_by_mfac else {"learning_rate": 0.1}
    with pytest.raises(ValueError, match=message):
        make(**rate, **arguments)
