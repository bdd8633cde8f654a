"""FRUGAL: its two ends, what moves by how much, when the choice changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import catalog, optimizers, testing
from tests.optimizers import trajectories

LINES = ("fan_in", "fan_out", "randperm", "entries")
DIRECTIONS = ("svd", "random")
over_lines = pytest.mark.parametrize("projection", LINES)


def gradients(shape=(4, 6), steps=4):
    return [{"kernel": jnp.asarray(g)} for g in trajectories.gradients(shape, steps)]


def moved(tx, grads, compiled=True):
    params = jax.tree.map(jnp.zeros_like, grads[0])
    points, state = trajectories.parameters(tx, params, grads, compiled=compiled)
    return [point["kernel"] for point in points], state


@over_lines
def test_of_density_one_it_is_adam_bit_for_bit(projection):
    grads = gradients(steps=2)
    tx = optimizers.frugal(0.1, density=1.0, projection=projection, every=9)
    # Not compiled as a whole: the compiler would fuse the two differently.
    got, _ = moved(tx, grads, compiled=False)
    want, _ = moved(optimizers.adamw(0.1, weight_decay=0.0), grads, compiled=False)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("projection", [*LINES, *DIRECTIONS])
def test_of_density_zero_it_is_sgd_of_signs(projection):
    grads = gradients()
    got, _ = moved(optimizers.frugal(0.125, density=0.0, projection=projection), grads)
    want = -0.125 * np.cumsum([np.sign(g["kernel"]) for g in grads], axis=0)
    np.testing.assert_array_equal(got, want)


@over_lines
def test_inactive_entries_move_by_exactly_the_rate(projection):
    (gradient,) = gradients((4, 8), 1)
    settings = {"density": 0.5, "projection": projection}
    tx = optimizers.frugal(0.125, inner=optax.scale(0.0), **settings)
    (got,), state = moved(tx, [gradient])
    still = got == 0
    assert still.sum() == 16
    np.testing.assert_array_equal(
        got[~still], -0.125 * np.sign(gradient["kernel"])[~still]
    )
    chosen = optax.tree.get(state, "chosen")[0]
    assert len(set(np.asarray(chosen[0]).tolist())) == chosen.shape[1]
    if projection != "entries":  # whole rows or whole columns
        whole = still.all(axis=0) | still.all(axis=1)[:, None]
        np.testing.assert_array_equal(whole & still, still)


@pytest.mark.parametrize("projection", DIRECTIONS)
def test_with_directions_the_remainder_is_what_the_basis_leaves(projection):
    (gradient,) = gradients((4, 6), 1)
    tx = optimizers.scale_by_frugal(
        density=0.5, projection=projection, inner=optax.scale(0.0), state_free="sgd"
    )
    updates, state = tx.update(gradient, tx.init(gradient))
    basis = state.chosen[0][0][0]
    assert basis.shape == (4, 2)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(basis.T @ updates["kernel"], 0, atol=1e-5)
    # With the identity on the part, the whole gradient is there again.
    tx = optimizers.scale_by_frugal(
        density=0.5, projection=projection, inner=optax.identity(), state_free="sgd"
    )
    updates, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(updates["kernel"], gradient["kernel"], atol=1e-5)


@pytest.mark.parametrize("reset", [True, False])
def test_the_choice_changes_every_so_many_steps_and_adam_starts_anew(reset):
    grads = gradients((8, 3), 5)
    tx = optimizers.scale_by_frugal(density=0.5, every=2, reset=reset)
    state, counts, chosen = tx.init(grads[0]), [], []
    for g in grads:
        _, state = jax.jit(tx.update)(g, state)
        counts.append(int(state.inner.count))
        chosen.append(sorted(np.asarray(state.chosen[0][0]).tolist()))
    assert counts == ([1, 2, 1, 2, 1] if reset else [1, 2, 3, 4, 5])
    assert chosen[0] == chosen[1] and chosen[2] == chosen[3]
    assert chosen[0] != chosen[2] or chosen[2] != chosen[4]


def test_after_a_reset_the_step_is_adam_s_first():
    grads = gradients((4, 6), 3)
    tx = optimizers.frugal(0.1, density=1.0, every=2)
    points, _ = moved(tx, grads)
    first, _ = moved(optimizers.adamw(0.1, weight_decay=0.0), grads[2:])
    np.testing.assert_allclose(points[2] - points[1], first[0], atol=1e-6)


def test_the_key_decides_the_choice_and_each_matrix_has_its_own():
    gradient = {"layers": {"kernel": jnp.ones((3, 16, 2))}}

    def choice(key):
        tx = optimizers.scale_by_frugal(density=0.5, key=key)
        return np.asarray(tx.update(gradient, tx.init(gradient))[1].chosen[0])

    same = choice(jax.random.key(1))
    np.testing.assert_array_equal(same, choice(jax.random.key(1)))
    assert (same != choice(jax.random.key(2))).any()
    assert (same[0] != same[1]).any() and (same[1] != same[2]).any()


def test_the_choice_may_follow_the_gradient():
    def largest(key, x, amount):
        return jnp.argsort(-jnp.abs(x).sum(axis=2), axis=1)[:, :amount]

    gradient = {"kernel": jnp.array([[1.0, 1.0], [9.0, 9.0], [0.0, 0.0], [3.0, 3.0]])}
    tx = optimizers.scale_by_frugal(density=0.5, choose=largest)
    _, state = tx.update(gradient, tx.init(gradient))
    np.testing.assert_array_equal(state.chosen[0], [[1, 3]])


@pytest.mark.parametrize(
    ("projection", "amount"),
    [
        ("fan_in", 8 * 16 * 2 + 8),
        ("fan_out", 32 * 4 * 2 + 4),
        ("entries", 128 * 3),
        ("tensors", 0),  # a fourth of one matrix is none
        # round(16 / 4) directions of the shorter side, the fan-out.
        ("svd", 32 * 4 * 2 + 16 * 4),
    ],
)
def test_the_state_is_the_stated_share_of_the_parameters(projection, amount):
    tx = optimizers.scale_by_frugal(projection=projection)
    params = {"kernel": jax.ShapeDtypeStruct((32, 16), jnp.float32)}
    state = jax.eval_shape(tx.init, params)
    floats = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert floats == amount


def test_the_state_free_part_has_its_own_factor_and_may_rest():
    (gradient,) = gradients((4, 6), 1)
    step = functools.partial(optimizers.frugal, 1.0, density=0.0)
    (half,), _ = moved(step(state_free="sgd", state_free_scale=0.5), [gradient])
    np.testing.assert_allclose(half, -0.5 * gradient["kernel"])
    (none,), _ = moved(step(state_free="no"), [gradient])
    np.testing.assert_array_equal(none, 0)


def test_inside_optax_masks_the_chosen_matrices_alone_move():
    (gradient,) = gradients((4, 6), 1)
    tree = {"a": gradient, "b": gradient}
    tx = optax.masked(optimizers.scale_by_frugal(), {"a": True, "b": False})
    updates, _ = tx.update(tree, tx.init(tree))
    assert (updates["a"]["kernel"] != gradient["kernel"]).all()
    np.testing.assert_array_equal(updates["b"]["kernel"], gradient["kernel"])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"projection": "columns"}, r"projection must be one of .*'fan_in'.*'columns'"),
        ({"state_free": "adam"}, r"state_free must be one of .*got 'adam'"),
        ({"side": "both"}, r"side must be one of .*got 'both'"),
        ({"order": "turns"}, r"order must be one of .*'mirror'.*got 'turns'"),
        ({"projection": "tensors", "reset": False}, r"moments of one matrix to anoth"),
        ({"density": 1.5}, r"density must be from 0 to 1, got 1.5"),
        ({"every": 0}, r"every must be an integer of 1 or more, got 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_when_the_chain_is_built(argument, words):
    with pytest.raises(ValueError, match=words):
        optimizers.frugal(0.1, rest=optax.sgd(0.1), **argument)


def test_a_leaf_that_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(3,\).*rest="):
        optimizers.frugal(0.1).init({"bias": jnp.ones(3)})


ORDERS = ("random", "ascending", "descending", "mirror")
# Six matrices, of which two lie in one leaf and two more have its shape.
SHAPES = {"a": (4, 3), "b": (2, 4, 3), "c": (5, 2), "d": (4, 3), "e": (2, 6)}
BLOCKS = {  # the matrices of each turn, counted in the order of leaves
    "ascending": [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]],
    "descending": [[2, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 3]],
    "mirror": [[0, 1, 4, 5], [0, 2, 3, 5], [1, 2, 3, 4]],
}
over_orders = pytest.mark.parametrize("order", ORDERS)


def tensor_gradients(steps):
    random = np.random.default_rng(0)
    return [
        {k: {"kernel": 3 * random.normal(size=n)} for k, n in SHAPES.items()}
        for _ in range(steps)
    ]


def by_tensor(tree):
    """The matrices of a tree, in the order of leaves, in float64."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return [m for x in leaves for m in x.reshape(-1, *x.shape[-2:])]


def by_blocks(grads, blocks, every, rate):
    """Adam on the matrices of a block, which begins anew; signs on the others."""
    points = [np.zeros(g.shape) for g in by_tensor(grads[0])]
    for step, tree in enumerate(grads):
        turn, t = divmod(step, every)
        if t == 0:
            moments = {i: (0.0, 0.0) for i in blocks[turn]}
        for i, g in enumerate(by_tensor(tree)):
            u = np.sign(g)
            if i in moments:
                m, v = moments[i]
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                moments[i] = m, v
                root = np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
                u = m / (1 - 0.9 ** (t + 1)) / root
            points[i] = points[i] - rate * u
        yield points.copy()


@over_orders
def test_whole_tensors_take_turns(order):
    grads = tensor_gradients(6)
    tx = optimizers.frugal(0.1, projection="tensors", density=0.6, order=order, every=2)
    params = jax.tree.map(lambda g: jnp.zeros(g.shape), grads[0])
    state, points, blocks = tx.init(params), [], []
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(jax.tree.map(jnp.float32, g), state, params)
        params = optax.apply_updates(params, updates)
        points.append(by_tensor(params))
        blocks.append(sorted(np.asarray(optax.tree.get(state, "chosen")).tolist()))
    assert blocks[::2] == blocks[1::2]
    assert all(len(set(block)) == 4 for block in blocks)
    assert blocks[::2] == BLOCKS.get(order, blocks[::2])
    if order == "random":
        assert len({tuple(block) for block in blocks}) > 1
    for got, want in zip(points, by_blocks(grads, blocks[::2], 2, 0.1), strict=True):
        for a, b in zip(got, want, strict=True):
            # 1 - 0.999 in float32 is off by 5e-5 of itself, and its root stands below.
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@over_orders
def test_of_whole_tensors_the_ends_are_adam_and_signs(order):
    grads = [jax.tree.map(jnp.float32, g) for g in tensor_gradients(2)]
    params = jax.tree.map(jnp.zeros_like, grads[0])
    for density, same in (
        (1.0, optimizers.adamw(0.125, weight_decay=0.0)),
        (0.0, optax.sign_sgd(0.125)),
    ):
        tx = optimizers.frugal(
            0.125, projection="tensors", density=density, order=order
        )
        (*_, got), _ = trajectories.parameters(tx, params, grads, compiled=True)
        (*_, want), _ = trajectories.parameters(same, params, grads)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want
        )


@pytest.mark.parametrize(
    ("order", "entries"),
    # 12, 12, 12, 10, 12, 12: four of them at most, or those of the largest turn.
    [("random", 4 * 12), ("ascending", 4 * 12), ("mirror", 4 * 12)],
)
def test_the_state_of_whole_tensors_has_room_for_the_largest_choice(order, entries):
    tx = optimizers.scale_by_frugal(projection="tensors", density=0.6, order=order)
    params = jax.tree.map(lambda g: jnp.zeros(g.shape), tensor_gradients(1)[0])
    state = jax.eval_shape(tx.init, params)
    assert [x.shape for x in jax.tree.leaves(state.inner)] == [(), *[(entries,)] * 2]


@pytest.mark.parametrize(("order", "entries"), [("random", 90), ("ascending", 64)])
def test_in_turn_a_large_tensor_costs_less_than_at_random(order, entries):
    shapes = {"a": (6, 10), "b": (2, 2), "c": (2, 2), "d": (5, 6)}
    params = {k: {"kernel": jnp.zeros(shape)} for k, shape in shapes.items()}
    tx = optimizers.scale_by_frugal(projection="tensors", density=0.5, order=order)
    assert tx.init(params).inner.mu[0].shape == (entries,)


def test_of_two_ends_an_odd_number_of_tensors_is_refused():
    tx = optimizers.frugal(0.1, projection="tensors", order="mirror", density=0.5)
    with pytest.raises(ValueError, match=r"density=0.5 of 6 matrices is 3, an odd nu"):
        tx.init(jax.tree.map(jnp.asarray, tensor_gradients(1)[0]))


def test_the_choice_of_tensors_may_follow_their_norms():
    def smallest(key, x, amount):
        return jnp.argsort(x[..., 0], axis=1)[:, :amount]

    tx = optimizers.scale_by_frugal(
        projection="tensors", density=0.5, choose=smallest, inner=optax.scale(0.0)
    )
    grads = {
        k: {"kernel": jnp.full((2, 2), x)}
        for k, x in zip("abcd", (3, 1, 4, 2), strict=True)
    }
    updates, _ = tx.update(grads, tx.init(grads))
    moved = {k: bool(u["kernel"].any()) for k, u in updates.items()}
    assert moved == {"a": True, "b": False, "c": True, "d": False}


PROMISES = ("donation", "stacked_equals_separate", "empty_leaves")


def test_whole_tensors_keep_the_promises_that_depend_on_the_state():
    row = catalog.get("frugal")
    row = dataclasses.replace(
        row, defaults={**row.defaults, "projection": "tensors", "every": 2}
    )
    report = testing.check(row, promises=PROMISES, print=False)
    assert {outcome.status for outcome in report} == {"pass"}, str(report)
