"""Links that every optimizer shares: the rate with its state, float32 inside."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import links, trees

LAST = 2**31 - 1


def ramp(count):
    return 0.5 / (1 + count)


def run(tx, steps, gradient=None, state=None):
    gradient = jnp.array([1.0, -2.0]) if gradient is None else gradient
    state = tx.init(gradient) if state is None else state
    for _ in range(steps):
        updates, state = tx.update(gradient, state)
    return updates, state


@pytest.mark.parametrize(
    "rate", [0.25, 1, np.float64(0.25), jnp.float32(0.25), ramp, lambda _: 0.25]
)
def test_the_state_has_one_layout_for_every_kind_of_rate(rate):
    state = links.scale_by_learning_rate(rate).init(jnp.ones(2, jnp.bfloat16))
    assert isinstance(state, links.ScaleByLearningRateState)
    assert (state.count.shape, state.count.dtype) == ((), jnp.int32)
    assert (state.learning_rate.shape, state.learning_rate.dtype) == ((), jnp.float32)
    _, after = links.scale_by_learning_rate(rate).update(jnp.ones(2), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert not after.count.weak_type
    assert not after.learning_rate.weak_type


def test_the_first_update_uses_step_zero_and_the_state_holds_the_rate_used():
    tx = links.scale_by_learning_rate(ramp)
    state = tx.init(jnp.ones(1))
    assert (state.count, state.learning_rate) == (0, 0.5)
    for step in range(4):
        updates, state = tx.update(jnp.ones(1), state)
        assert state.count == step + 1
        assert state.learning_rate == np.float32(ramp(step))
        np.testing.assert_array_equal(updates, [-state.learning_rate])


def test_equals_optax_for_constants_and_schedules():
    for rate in (0.3, ramp):
        ours, _ = run(links.scale_by_learning_rate(rate), 3)
        theirs, _ = run(optax.scale_by_learning_rate(rate), 3)
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_a_run_can_change_from_a_constant_to_a_schedule_when_it_resumes():
    _, state = run(links.scale_by_learning_rate(0.1), 3)
    updates, state = run(links.scale_by_learning_rate(ramp), 1, state=state)
    np.testing.assert_allclose(updates, -ramp(3) * np.array([1.0, -2.0]), rtol=1e-7)
    updates, state = run(links.scale_by_learning_rate(0.1), 1, state=state)
    np.testing.assert_allclose(updates, -0.1 * np.array([1.0, -2.0]), rtol=1e-7)
    assert state.count == 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_updates_keep_their_dtype_and_the_rate_its_precision(dtype):
    gradient = jnp.ones(3, dtype)
    updates, state = run(links.scale_by_learning_rate(0.001), 1, gradient)
    assert updates.dtype == gradient.dtype
    assert state.learning_rate == np.float32(0.001)  # 0.00099945 in bfloat16
    np.testing.assert_array_equal(updates, jnp.full(3, -0.001, dtype))


def test_the_count_stays_at_the_largest_integer():
    tx = links.scale_by_learning_rate(0.1)
    state = tx.init(jnp.ones(2))._replace(count=jnp.int32(LAST))
    _, state = run(tx, 2, state=state)
    assert state.count == LAST


def test_the_state_never_aliases_the_callers_rate():
    rate = jnp.float32(0.1)
    tx = links.scale_by_learning_rate(rate)
    step = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(jnp.ones(2))
    for _ in range(2):
        _, state = step(jnp.ones(2), state)
    assert rate + 0 == np.float32(0.1)  # raises if the buffer was given away


def test_a_traced_rate_compiles_once():
    traces = []

    @jax.jit
    def update(rate, state):
        traces.append(1)
        return links.scale_by_learning_rate(rate).update(jnp.ones(2), state)

    state = links.scale_by_learning_rate(0.0).init(jnp.ones(2))
    for rate in (0.1, 0.2):
        updates, state = update(rate, state)
        np.testing.assert_allclose(updates, -rate)
    assert len(traces) == 1


class Steered:
    """A schedule that keeps two values in the state, as `schedules.steered` does."""

    def __init__(self):
        self.values = {"start": 5, "scale": 0.5}

    def __call__(self, count, *, start, scale):
        return jnp.where(count < start, scale, 0.0)


def test_an_ordinary_rate_has_no_settings():
    for rate in (0.1, ramp):
        state = links.scale_by_learning_rate(rate).init(jnp.ones(2))
        assert state.settings == {} and len(jax.tree.leaves(state)) == 2


def test_values_of_a_schedule_are_kept_in_the_state_and_can_be_set():
    tx = links.scale_by_learning_rate(Steered())
    state = tx.init(jnp.ones(2))
    assert {name: v.dtype for name, v in state.settings.items()} == {
        "start": jnp.int32,
        "scale": jnp.float32,
    }
    _, state = run(tx, 3, state=state)
    assert state.learning_rate == 0.5
    state = optax.tree.set(state, start=jnp.int32(4), scale=jnp.float32(0.25))
    _, state = run(tx, 1, state=state)
    assert state.learning_rate == 0.25
    _, state = run(tx, 1, state=state)
    assert (state.learning_rate, state.settings["start"]) == (0, 4)


def test_a_setting_keeps_its_dtype_whatever_it_was_set_to():
    tx = links.scale_by_learning_rate(Steered())
    state = tx.init(jnp.ones(2))
    after = optax.tree.set(state, start=7, scale=1)
    _, after = tx.update(jnp.ones(2), after)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert not after.settings["start"].weak_type


@pytest.mark.parametrize("wrong", [7.5, np.float32(7)])
def test_a_setting_that_counts_steps_must_be_an_integer(wrong):
    tx = links.scale_by_learning_rate(Steered())
    state = optax.tree.set(tx.init(jnp.ones(2)), start=wrong)
    with pytest.raises(TypeError, match=r"setting 'start' is an integer, got 7"):
        tx.update(jnp.ones(2), state)


def test_a_state_with_other_settings_is_refused():
    steered, plain = (links.scale_by_learning_rate(r) for r in (Steered(), 0.1))
    for tx, other in ((steered, plain), (plain, steered)):
        with pytest.raises(ValueError, match=r"the state has settings \[.*values \["):
            tx.update(jnp.ones(2), other.init(jnp.ones(2)))


class Grouped:
    """A schedule with a rate for each group, as `schedules.per_group` makes one."""

    def __init__(self, labels):
        self.labels = labels

    def __call__(self, count):
        return {"slow": 0.25, "fast": 0.5 / (1 + count)}


TREE = {"a": {"x": jnp.ones(2), "y": jnp.ones(1, jnp.bfloat16)}, "b": jnp.ones(3)}


@pytest.mark.parametrize(
    "labels",
    [
        {"a": {"x": "slow", "y": "slow"}, "b": "fast"},
        {"a": "slow", "b": "fast"},
        lambda tree: {"a": "slow", "b": "fast"},
    ],
)
def test_each_leaf_gets_the_rate_of_its_label(labels):
    tx = links.scale_by_learning_rate(Grouped(labels))
    state = tx.init(TREE)
    for step in range(2):
        updates, state = tx.update(TREE, state)
        np.testing.assert_array_equal(updates["a"]["x"], -0.25)
        np.testing.assert_array_equal(updates["b"], -0.5 / (1 + step))
    assert updates["a"]["y"].dtype == jnp.bfloat16
    assert state.count == 2
    assert state.learning_rate == {"slow": 0.25, "fast": 0.25}


def test_a_label_without_a_schedule_is_named():
    tx = links.scale_by_learning_rate(Grouped({"a": "slow", "b": "fsat"}))
    with pytest.raises(ValueError, match=r"leaf 'b' has the label 'fsat'; .*'fast'"):
        tx.update(TREE, tx.init(TREE))


def test_unknown_extra_arguments_are_ignored():
    tx = links.scale_by_learning_rate(0.5)
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=3.0, new=None)
    assert updates == -0.5


def test_widen_touches_only_half_precision():
    dtypes = ("bfloat16", "float16", "float32", "int32", "bool")
    want = ("float32", "float32", "float32", "int32", "bool")
    tree = {name: jnp.zeros(2, name) for name in dtypes}
    for leaves in (tree, jax.eval_shape(lambda: tree)):
        wide = links.widen(leaves)
        assert tuple(wide[name].dtype.name for name in dtypes) == want
        assert wide["float32"] is leaves["float32"]
        assert type(wide["float16"]) is type(wide["float32"])
    assert links.widen(None) is None


def test_in_float32_an_average_of_slow_decay_moves():
    gradient = jnp.ones(4, jnp.bfloat16)
    tx = links.in_float32(optax.scale_by_adam(b2=0.999))
    updates, state = run(tx, 3, gradient)
    assert updates.dtype == jnp.bfloat16
    assert (state.mu.dtype, state.nu.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(state.nu, 1 - 0.999**3, rtol=1e-4)
    # The reason for the link: Optax alone keeps the average in bfloat16.
    _, theirs = run(optax.scale_by_adam(b2=0.999), 3, gradient)
    assert theirs.nu.dtype == jnp.bfloat16


def test_in_float32_leaves_wide_trees_alone():
    gradient = jnp.array([1.0, -2.0])
    ours = run(links.in_float32(optax.scale_by_adam()), 3, gradient)
    theirs = run(optax.scale_by_adam(), 3, gradient)
    chex.assert_trees_all_equal(ours, theirs)
    with jax.enable_x64(True):
        wide, state = run(links.in_float32(optax.scale_by_adam()), 1, jnp.ones(2))
        assert (wide.dtype, state.nu.dtype) == (jnp.float64, jnp.float64)


def test_in_float32_hands_parameters_and_extra_arguments_on():
    def update(updates, state, params=None, *, scale, **extra_args):
        del extra_args
        assert params.dtype == jnp.float32
        return jax.tree.map(lambda u: u * scale, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = links.in_float32(inner)
    one = jnp.ones(2, jnp.bfloat16)
    updates, _ = tx.update(one, tx.init(one), one, scale=0.5)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates, 0.5)
    # A transformation without extra arguments takes them too.
    plain = links.in_float32(optax.scale(2.0))
    updates, _ = plain.update(one, plain.init(one), one, value=1.0)
    np.testing.assert_array_equal(updates, 2)


def test_inner_product_is_that_of_the_trees_laid_end_to_end():
    a = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([-1.0])}
    b = {"w": jnp.array([[0.5, 2.0]]), "b": jnp.array([2.0])}
    assert links.inner_product(a, b) == 1.5 + 8 - 2
    cosine = links.inner_product(a, b, normalize=True)
    np.testing.assert_allclose(cosine, 7.5 / np.sqrt(26 * 8.25), rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, b)
    assert links.inner_product(a, zero, normalize=True) == 0
    bad = {**a, "b": jnp.array([jnp.nan])}
    assert jnp.isnan(links.inner_product(bad, b))
    assert links.inner_product(bad, b, normalize=True) == 0


def test_matrices_and_rest_go_to_their_own_transformations():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    seen = []

    def matrices(views):
        seen.append(views)
        return optax.scale(2.0)

    tx = links.matrices_and_rest(matrices, optax.scale(3.0), trees.matrix_views)
    updates, _ = tx.update(params, tx.init(params))
    assert (float(updates["kernel"][0, 0]), float(updates["bias"][0])) == (2.0, 3.0)
    # What the matrices are given has the views of the whole tree.
    assert seen[-1] == trees.matrix_views(params)


def test_without_a_rest_the_first_transformation_gets_everything():
    tx = links.matrices_and_rest(lambda _: optax.scale(2.0), None, trees.matrix_views)
    updates, _ = tx.update({"bias": jnp.ones(2)}, tx.init({"bias": jnp.ones(2)}))
    assert float(updates["bias"][0]) == 2.0


def test_arguments_of_the_matrices_are_checked_before_any_tree_is_seen():
    def refuse(views):
        raise ValueError("bad scale")

    with pytest.raises(ValueError, match="bad scale"):
        links.matrices_and_rest(refuse, optax.scale(1.0), trees.matrix_views)


def test_cautious_decay_acts_where_it_agrees_with_the_update():
    w, u = jnp.array([2.0, 2.0, -2.0, 2.0]), jnp.array([1.0, -1.0, -1.0, 0.0])
    got, _ = links.add_decayed_weights(0.25, cautious=True).update(u, (), w)
    np.testing.assert_array_equal(got, [1.5, -1.0, -1.5, 0.5])
    plain, _ = links.add_decayed_weights(0.25).update(u, optax.EmptyState(), w)
    np.testing.assert_array_equal(plain, [1.5, -0.5, -1.5, 0.5])


@pytest.mark.parametrize("cautious", [False, True])
def test_decay_minds_its_mask_and_asks_for_parameters(cautious):
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    mask = {"kernel": True, "bias": False}
    tx = links.add_decayed_weights(0.5, mask, cautious=cautious)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 1.5)
    np.testing.assert_array_equal(updates["bias"], 1.0)
    with pytest.raises(ValueError, match="add_decayed_weights: needs the parameters"):
        tx.update(params, tx.init(params))
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    updates, _ = tx.update(half, tx.init(half), half)
    assert updates["kernel"].dtype == jnp.bfloat16


def test_on_auto_axes_a_small_buffer_is_whole():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.NamedSharding(mesh, jax.P("x"))
    cut = jax.device_put(jnp.arange(8.0), place)
    with jax.set_mesh(mesh):
        assert jax.jit(links.settled)(cut).sharding.is_fully_replicated
    assert not jax.jit(lambda x: 2 * x)(cut).sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("order", "step"),
    [("together", -0.15), ("after", -0.145), ("proximal", 0.9 / 1.05 - 1)],
)
def test_a_direction_becomes_a_step_with_decay_in_any_order(order, step):
    w = jnp.ones(1)
    tx = links.descend(optax.identity(), 0.1, weight_decay=0.5, decay_order=order)
    updates, state = tx.update(w, tx.init(w), w)
    np.testing.assert_allclose(updates, [step], rtol=1e-6)
    # One step, one count: decay reads the rate and does not move it on.
    assert int(optax.tree.get(state, "count")) == 1


def test_a_proximal_step_minds_mask_groups_and_schedule():
    params = {"kernel": jnp.full(2, 2.0), "bias": jnp.full(2, 2.0)}
    zero = jax.tree.map(jnp.zeros_like, params)
    rate = Grouped({"kernel": "fast", "bias": "slow"})
    for mask, bias in ((None, 2 / 1.125), ({"kernel": True, "bias": False}, 2)):
        tx = links.descend(
            optax.identity(), rate, weight_decay=0.5, mask=mask, decay_order="proximal"
        )
        updates, state = tx.update(zero, tx.init(params), params)
        after = optax.apply_updates(params, updates)
        np.testing.assert_allclose(after["kernel"], 2 / 1.25, rtol=1e-6)
        np.testing.assert_allclose(after["bias"], bias, rtol=1e-6)
        updates, state = tx.update(zero, state, params)
        after = optax.apply_updates(params, updates)
        np.testing.assert_allclose(after["kernel"], 2 / 1.125, rtol=1e-6)


@pytest.mark.parametrize("order", links.DECAY_ORDERS)
def test_decay_without_parameters_is_refused_with_the_remedy(order):
    tx = links.descend(optax.identity(), 0.1, weight_decay=0.5, decay_order=order)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., par"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))


def test_the_state_of_a_direction_comes_first():
    state = links.descend(optax.trace(0.9), 0.1).init(jnp.ones(1))
    assert isinstance(state[0], optax.TraceState)


def test_an_unknown_order_of_decay_is_refused():
    with pytest.raises(ValueError, match=r"descend: decay_order .*'after'.*'before'"):
        links.descend(optax.identity(), 0.1, decay_order="before")


def test_matrices_of_a_stack_are_held_by_their_own_norm():
    stack = jnp.stack([jnp.full((2, 3), size) for size in (1e30, 1e-9, 0.0, jnp.nan)])
    gradient = {"experts": {"kernel": stack}, "bias": jnp.zeros(3)}
    ones = optax.stateless(lambda updates, _: jax.tree.map(jnp.ones_like, updates))
    for least, moves in ((0.0, [1, 1, 0, 1]), (1e-8, [1, 0, 0, 1])):
        tx = links.hold_still(ones, least, trees.matrix_views)
        got, _ = tx.update(gradient, tx.init(gradient))
        np.testing.assert_array_equal(got["experts"]["kernel"][:, 0, 0], moves)
        np.testing.assert_array_equal(got["bias"], 1)


def test_held_on_request_only():
    core = optax.trace(0.9)
    assert links.hold_still(core, None, trees.matrix_views).init is core.init
    with pytest.raises(ValueError, match=r"min_norm must be 0 or more, got -1\.0"):
        links.hold_still(core, -1.0, trees.matrix_views)


def test_one_rule_moves_leaves_and_buffers_and_keeps_their_dtypes():
    def rule(g, m, n):
        assert g.dtype == jnp.float32
        return g + 1.0, m + g, n * 2

    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": [jnp.ones(())]}
    m = jax.tree.map(lambda x: jnp.zeros(x.shape), tree)
    n = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.bfloat16), tree)
    u, new_m, new_n = links.each_leaf(rule, tree, m, n)
    for new, old in ((u, tree), (new_m, m), (new_n, n)):
        chex.assert_trees_all_equal_shapes_and_dtypes(new, old)
    assert (float(u["b"][0]), float(new_m["a"][0]), float(new_n["a"][1])) == (2, 1, 2)
    hidden = {"a": optax.MaskedNode(), "b": None}
    assert links.each_leaf(rule, hidden, hidden, hidden) == (hidden,) * 3


def test_a_rule_that_forgets_a_buffer_is_refused():
    with pytest.raises(ValueError, match="zip"):
        links.each_leaf(lambda g, m: (g,), jnp.ones(2), jnp.ones(2))


@pytest.mark.parametrize("wrong", [-0.1, 1, 1.5, float("nan"), np.float32(2)])
def test_decays_out_of_range_are_named(wrong):
    links.require_decays("x", b1=0, b2=0.999, b3=jnp.float32(2), b4=None)
    with pytest.raises(ValueError, match="x: b2 must be at least 0 and below 1, got"):
        links.require_decays("x", b1=0.9, b2=wrong)


@pytest.mark.parametrize("wrong", [-1e-8, float("nan"), np.float64(-1)])
def test_negative_numbers_are_named(wrong):
    links.require_nonnegative("x", eps=0, rate=jnp.float32(-2))
    with pytest.raises(ValueError, match="x: eps must be 0 or more, got"):
        links.require_nonnegative("x", eps=wrong)
