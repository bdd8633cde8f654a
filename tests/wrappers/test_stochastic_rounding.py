"""Parameters in bfloat16: where they land, the mean of it, what is drawn from a key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import links, sharding, testing, wrappers

HALF = jnp.bfloat16
# Parameters and steps: far below a unit in the last place, some units, across a power
# of two, from and to zero, past it, twice the size and more.
MOVES = np.array(
    [
        *((1.0, 1e-3), (1.0, -1e-4), (-0.3, 3e-5), (100.0, 0.1), (3.0, -0.02)),
        *((1.0, -0.003), (2.0, -0.01), (0.0, 1.2345e-3), (0.7, -0.7), (0.7, -0.6987)),
        *((1.0, -0.701), (1.0, -1.0301), (-1.0, 3.3333), (0.50390625, 1.2345)),
        *((1e-3, 7.7777), (1e30, 1e27), (1e-30, -1e-32)),
    ],
    np.float32,
)


def given(steps):
    """A transformation whose updates are these, whatever comes in."""
    return optax.stateless(lambda updates, params: steps)


@functools.partial(jax.jit, static_argnames="dtype")
def landings(p, steps, keys, dtype):
    """Where one step ends with each of the keys, in float32."""
    g = jnp.zeros_like(p, dtype)

    def end(key):
        tx = wrappers.stochastic_rounding(given(steps), key=key)
        updates, _ = tx.update(g, tx.init(p), p)
        assert updates.dtype == dtype
        return optax.apply_updates(p, updates)

    return jax.lax.map(end, keys, batch_size=500).astype(jnp.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_mean_of_a_step_is_that_in_float32_and_it_ends_on_two_values(dtype):
    p, steps = jnp.asarray(MOVES[:, 0], HALF), jnp.asarray(MOVES[:, 1])
    wanted = np.asarray(p.astype(jnp.float32) + steps)
    keys = jax.random.split(jax.random.key(3), 4000)
    got = np.asarray(landings(p, steps, keys, dtype), np.float64)
    # Off by less than 5 standard errors.
    error = 5 * np.std(got, 0) / len(got) ** 0.5
    assert (np.abs(np.mean(got, 0) - wanted) <= error + 1e-7 * np.abs(wanted)).all()
    ends = [np.unique(column) for column in got.T]
    assert all(len(end) <= 2 for end in ends)
    low, high = map(np.asarray, links.bfloat16_neighbours(jnp.asarray(wanted)))
    near = np.array(
        [
            end[0] >= a and end[-1] <= b
            for end, a, b in zip(ends, low, high, strict=True)
        ]
    )
    # With an update in bfloat16 not all neighbours of far goals can be reached.
    far = np.abs(MOVES[:, 1]) > 0.5 * np.abs(MOVES[:, 0])
    assert near[~far].all()
    assert near.all() == (dtype == "float32")
    assert all(end[0] <= x <= end[-1] for end, x in zip(ends, wanted, strict=True))


def test_applied_outside_of_the_compiled_step_it_lands_alike():
    """Compilers may keep more digits than bfloat16 between two operations."""
    random = np.random.default_rng(0)
    p = jnp.asarray(
        random.normal(size=2000) * 4.0 ** random.integers(-9, 9, 2000), HALF
    )
    steps = jnp.asarray(random.normal(size=2000) * 4.0 ** random.integers(-9, 9, 2000))
    tx = wrappers.stochastic_rounding(given(steps.astype(jnp.float32)))

    def updates(p):
        return tx.update(p, tx.init(p), p)[0]

    outside = optax.apply_updates(p, jax.jit(updates)(p))
    inside = jax.jit(lambda p: optax.apply_updates(p, updates(p)))(p)
    np.testing.assert_array_equal(inside, outside)
    # Farther than the two neighbours never by more than the update resolves.
    wanted = p.astype(jnp.float32) + steps
    coarse = jnp.maximum(jnp.abs(p), jnp.maximum(jnp.abs(steps), jnp.abs(wanted)))
    off = jnp.abs(outside.astype(jnp.float32) - wanted)
    assert jnp.max(off / coarse) < 2.0**-6


def test_updates_below_half_a_unit_move_parameters_as_in_float32():
    """A thousand steps of 1e-5 from 1; bfloat16 has nothing above 0.996."""

    def end(tx, p):
        def body(carry, _):
            p, state = carry
            updates, state = tx.update(jnp.ones_like(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        p = jax.lax.scan(body, (p, tx.init(p)), length=1000)[0][0]
        return p.astype(jnp.float32)

    inner, half = optax.sgd(1e-5), jnp.ones(2000, HALF)
    np.testing.assert_allclose(end(inner, jnp.ones(1)), 0.99, rtol=1e-4)
    np.testing.assert_array_equal(end(inner, half), 1.0)
    got = end(wrappers.stochastic_rounding(inner), half)
    spread = jnp.std(got) / len(got) ** 0.5
    assert jnp.abs(jnp.mean(got) - 0.99) < 5 * spread < 1e-3


def test_a_key_gives_its_bits_and_another_others():
    p, g = jnp.ones(200, HALF), jnp.ones(200, HALF)

    def step(key, name="w"):
        tx = wrappers.stochastic_rounding(optax.sgd(1e-3), key=key)
        updates, state = tx.update({name: g}, tx.init({name: p}), {name: p})
        return updates[name], state

    first, state = step(None)
    np.testing.assert_array_equal(step(jax.random.key(0))[0], first)
    assert np.any(step(jax.random.key(1))[0] != first)
    # Each leaf and each step draws anew.
    assert np.any(step(None, "v")[0] != first)
    tx = wrappers.stochastic_rounding(optax.sgd(1e-3))
    assert np.any(tx.update({"w": g}, state, {"w": p})[0]["w"] != first)
    assert state.key != jax.random.key(0)
    assert state.count == 1


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_on_a_mesh_the_bits_are_those_of_one_device(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    tx = wrappers.stochastic_rounding(optax.adam(1e-3))
    p = jnp.cos(jnp.arange(64.0)).reshape(8, 8).astype(HALF)

    @jax.jit
    def two_steps(p):
        state = tx.init(p)
        for _ in range(2):
            updates, state = tx.update(jnp.sin(9 * p), state, p)
            p = optax.apply_updates(p, updates)
        return p

    wanted = two_steps(p)
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec("x", "y"))
        placed = jax.device_put(p, where)
        got = two_steps(placed)
        assert got.sharding.is_equivalent_to(where, 2)
        assert sharding.collectives(two_steps, placed).counts == {}
    np.testing.assert_array_equal(got, wanted)


def test_parameters_in_bfloat16_keep_the_promises_too():
    """The catalogue's row is asked in float32, where nothing is drawn."""
    tx = wrappers.stochastic_rounding(optax.adam(1e-2))
    w = jnp.cos(jnp.arange(48.0)).reshape(8, 6).astype(HALF)
    names = ["no_recompilation", "donation", "resume_msgpack", "masked", "vmap", "scan"]
    subject = testing.Subject(tx, {"w": w, "v": w[0]}, tolerance=0.0)
    testing.check(subject, promises=names, print=False).raise_for_failures()


def test_the_inner_transformation_works_in_float32():
    """Its state is the same whether the parameters are rounded or not."""
    inner = optax.adamw(1e-2, weight_decay=0.1)
    tx = wrappers.stochastic_rounding(inner)
    p = jnp.cos(jnp.arange(6.0)).astype(HALF)
    g = jnp.sin(jnp.arange(6.0)).astype(HALF)
    _, state = tx.update(g, tx.init(p), p)
    wide, more = g.astype(jnp.float32), p.astype(jnp.float32)
    _, wanted = inner.update(wide, inner.init(more), more)
    for mine, theirs in zip(
        jax.tree.leaves(state.inner_state), jax.tree.leaves(wanted), strict=True
    ):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_pass_unchanged(dtype):
    inner = optax.adam(1e-2)
    p = jnp.cos(jnp.arange(6.0)).astype(dtype)
    tx = wrappers.stochastic_rounding(inner)
    updates, _ = tx.update(p, tx.init(p), p)
    wide = p.astype(jnp.float32)
    wanted = inner.update(wide, inner.init(wide), wide)[0].astype(dtype)
    assert updates.dtype == dtype
    np.testing.assert_array_equal(updates, wanted)


def test_what_does_not_move_stays_and_what_is_no_number_shows():
    p = jnp.array([1.0, -0.0, 3e38, 1.0, 1.0, jnp.nan], HALF)
    steps = jnp.array([0.0, 0.0, 3e38, jnp.inf, jnp.nan, 0.0])
    keys = jax.random.split(jax.random.key(0), 2)
    got = landings(p, steps, keys, "bfloat16")[0]
    np.testing.assert_array_equal(got[:2], [1.0, 0.0])
    np.testing.assert_array_equal(got[3:], [np.inf, np.nan, np.nan])
    assert got[2] == np.inf  # the sum is not finite in float32 either
    assert (
        landings(jnp.zeros((0, 3), HALF), jnp.zeros((0, 3)), keys, "bfloat16").size == 0
    )


def test_bad_input_is_named():
    tx = wrappers.stochastic_rounding(optax.identity())
    params = {"up": {"kernel": jnp.ones(2, HALF)}}
    state = tx.init(params)
    said = r"stochastic_rounding: needs the parameters: update\(\.\.\., params\)"
    with pytest.raises(TypeError, match=said):
        tx.update(params, state)
    said = "leaf 'up/kernel' is in bfloat16 and its gradient in float16; cast the grad"
    with pytest.raises(TypeError, match=said):
        tx.update(optax.tree.cast(params, jnp.float16), state, params)
