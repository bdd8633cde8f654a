"""States of one or two bytes: their size, what rounding does to averages, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import links, optimizers, sharding, testing, wrappers
from tests.optimizers import trajectories

FORMATS = ["bfloat16", "8bit"]
both_formats = pytest.mark.parametrize("stored", FORMATS)


def round_trip(x, block_size=256, key=None):
    return links.from_eight_bits(*links.to_eight_bits(x, block_size, key), block_size)


def bytes_of(state):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)


@pytest.mark.parametrize(("stored", "wanted"), [("bfloat16", 4), ("8bit", 2 + 8 / 256)])
def test_adam_has_a_half_and_a_quarter_of_its_bytes(stored, wanted):
    params = {"kernel": jnp.ones((64, 512)), "bias": jnp.ones(512)}
    inner = optimizers.adamw(1e-3)
    state = jax.eval_shape(wrappers.state_precision(inner, stored).init, params)
    # Two small arrays stay as they are.
    assert bytes_of(state) == wanted * 64 * 512 + 2 * 4 * 512
    assert bytes_of(jax.eval_shape(inner.init, params)) == 8 * (64 * 512 + 512)


@both_formats
def test_scalars_counts_and_keys_are_not_touched(stored):
    def init(params):
        return {
            "count": jnp.int32(3),
            "key": jax.random.key(7),
            "seen": jnp.arange(8),
            "raw": jnp.arange(8, dtype=jnp.uint8),
            "rate": jnp.float32(0.001),
            "none": jnp.zeros((0, 4)),
            "mean": params,
        }

    inner = optax.GradientTransformation(init, lambda u, state, params: (u, state))
    tx = wrappers.state_precision(inner, stored, min_size=0)
    w = jnp.linspace(0.1, 1.0, 8)
    state = tx.init(w)
    for _ in range(2):
        _, state = tx.update(w, state)
    now = state.inner_state
    assert now["mean"].dtype == {"bfloat16": jnp.bfloat16, "8bit": jnp.uint8}[stored]
    assert now["key"] == jax.random.key(7)
    for name in ("count", "seen", "raw", "rate", "none"):
        np.testing.assert_array_equal(now[name], init(w)[name])
        assert now[name].dtype == init(w)[name].dtype


@both_formats
def test_the_inner_update_sees_the_dtypes_that_it_made(stored):
    """bfloat16 of the inner state's own is no bfloat16 of ours; float64 comes back."""

    def check(updates, state, params):
        seen.append({name: x.dtype for name, x in state.items()})
        return updates, state

    seen = []
    dtypes = {"half": jnp.bfloat16, "single": jnp.float32, "double": jnp.float64}
    with jax.enable_x64(True):
        inner = optax.GradientTransformation(
            lambda p: {name: p.astype(dtype) for name, dtype in dtypes.items()}, check
        )
        tx = wrappers.state_precision(inner, stored, min_size=1)
        w = jnp.ones(3, jnp.float64)
        jax.eval_shape(tx.update, w, jax.eval_shape(tx.init, w))
    assert seen == [dtypes]


def mean_squares(stored, rounding):
    """Mean squares of 1, and what 2500 steps with a gradient of 0.1 make of them."""
    tx = wrappers.state_precision(
        optax.scale_by_rms(decay=0.999, initial_scale=1.0),
        stored,
        rounding=rounding,
        min_size=1,
    )
    # One entry of the block keeps its scale where it is.
    g = jnp.full(256, 0.1).at[0].set(1.0)

    def read(state):
        nu, scales = state.inner_state.nu, state.scales
        if stored == "bfloat16":
            return nu.astype(float)[1:]
        return links.from_eight_bits(nu, *scales.values(), 256)[1:]

    start = tx.init(jnp.zeros(256))
    end = jax.lax.scan(
        lambda state, _: (tx.update(g, state)[1], None), start, length=2500
    )[0]
    return read(start), read(end)


@both_formats
def test_an_average_stands_still_unless_rounded_by_chance(stored):
    """With b2 = 0.999 a mean square falls by less than half of what is resolved."""
    start, end = mean_squares(stored, "nearest")
    np.testing.assert_array_equal(end, start)
    np.testing.assert_array_equal(end, 1.0)
    _, end = mean_squares(stored, "stochastic")
    truth = 0.01 + 0.99 * 0.999**2500
    np.testing.assert_allclose(jnp.mean(end), truth, rtol=0.1)


@both_formats
def test_training_goes_as_with_the_whole_state(stored):
    curvature = jnp.linspace(0.1, 1.0, 64) * jnp.ones((64, 1))

    def loss(w):
        return 0.5 * jnp.sum(curvature * w * w)

    def end(tx):
        def body(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
        return float(loss(jax.lax.scan(body, (w, tx.init(w)), length=150)[0][0]))

    inner = optimizers.adamw(0.02, weight_decay=0.0)
    whole, start = end(inner), end(optax.set_to_zero())
    got = end(wrappers.state_precision(inner, stored))
    assert whole < 0.01 * start
    assert got < 0.02 * start


@pytest.mark.parametrize(
    ("make", "stored"),
    [
        (optimizers.adan, "8bit"),
        (optimizers.muon, "bfloat16"),
        pytest.param(optimizers.soap, "8bit", marks=pytest.mark.slow),
    ],
)
def test_around_other_optimizers_with_chance_promises_hold(make, stored):
    """Those that do not ask for equal draws of different trees."""
    tx = wrappers.state_precision(make(1e-2), stored, min_size=8, block_size=8)
    params = {"layers": {"kernel": jnp.cos(jnp.arange(192.0)).reshape(8, 4, 6)}}
    names = ["no_recompilation", "donation", "resume_msgpack", "auto_mesh"]
    names += ["state_layout_is_stable", "explicit_mesh"]
    subject = testing.Subject(tx, params, tolerance=1e-4)
    testing.check(subject, promises=names, print=False).raise_for_failures()
    dtypes = {x.dtype for x in jax.tree.leaves(subject.trajectory()[-1].state)}
    assert jnp.dtype({"bfloat16": "bfloat16", "8bit": "uint8"}[stored]) in dtypes


@pytest.mark.parametrize("block_size", [4, 16, 100])
def test_on_an_explicit_mesh_codes_lie_as_the_array_does(block_size):
    """Whole blocks on each device, one block over several, and a row with a rest."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32)), jnp.float32)
    key = jax.random.key(0)
    wanted = links.to_eight_bits(x, block_size, key)
    back = links.from_eight_bits(*wanted, block_size)
    with jax.set_mesh(mesh):
        home = NamedSharding(mesh, PartitionSpec("y", "x"))
        got = links.to_eight_bits(jax.device_put(x, home), block_size, key)
        assert got[0].sharding == home
        assert got[1].sharding.spec == PartitionSpec(
            "y", "x" if block_size < 9 else None
        )
        again = links.from_eight_bits(*got, block_size)
        assert again.sharding == home
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(again, back)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_whole_blocks_on_each_device_send_nothing(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    tx = wrappers.state_precision(
        optax.scale_by_adam(), "8bit", block_size=4, min_size=1
    )
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec("x", "y"))
        w = jax.device_put(jnp.ones((8, 16)), where)
        state = sharding.init_sharded(tx, w, where)
        assert sharding.collectives(tx.update, w, state).counts == {}


def test_levels_of_squares_and_of_signed_entries():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 512)), jnp.float32)
    squares = x * x
    # Half of the widest gap, which is at the top: 2 / 127 and 4 / 255.
    largest = jnp.max(jnp.abs(x).reshape(16, 2, 256), -1, keepdims=True)
    error = jnp.abs(round_trip(x) - x).reshape(16, 2, 256)
    assert jnp.max(error / largest) < 1.0 / 127
    error = jnp.abs(round_trip(squares) - squares).reshape(16, 2, 256)
    assert jnp.max(error / largest**2) < 2.0 / 255
    # Small squares keep their size, to a factor of two where they are 1e-8 of the
    # largest, and only zero is zero.
    few = jnp.array([1.0, 1e-4, 1e-6, 1e-20, 0.0])
    got = round_trip(few)
    np.testing.assert_allclose(got[:3], few[:3], rtol=0.3)
    np.testing.assert_allclose(got[3], 255.0**-4, rtol=1e-5)
    assert got[4] == 0
    # Signed entries have no levels so low: zero is one of them.
    got = round_trip(few.at[4].set(-1.0))
    np.testing.assert_allclose(got[1], 127.0**-2, rtol=1e-5)
    np.testing.assert_array_equal(got[2:], [0.0, 0.0, -1.0])


def test_what_is_written_twice_is_written_alike():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 100)), jnp.float32)
    for tree in (x, x * x, 0 * x):
        once = round_trip(tree, 16)
        np.testing.assert_array_equal(round_trip(once, 16), once)


def test_blocks_end_with_the_row_and_have_a_scale_each():
    x = jnp.ones((3, 5)).at[0].set(100.0)
    codes, scales = links.to_eight_bits(x, 2)
    assert (codes.shape, scales.shape) == ((3, 5), (3, 3))
    np.testing.assert_array_equal(links.from_eight_bits(codes, scales, 2), x)


def test_zero_infinite_and_faulty_entries():
    rows = [[0.0, 0.0], [np.inf, 1.0], [-3e38, np.inf], [np.nan, 1.0], [1e-36, 2e-36]]
    x = jnp.array(rows)
    got = round_trip(x)
    np.testing.assert_array_equal(got[0], 0.0)
    np.testing.assert_array_equal(got[1:3, 0], [2.0**126, -(2.0**126)])
    assert np.isfinite(got[1:3]).all()
    assert np.isnan(got[3]).all()
    np.testing.assert_allclose(got[4], x[4], rtol=0.05)


def draws(values, count=4000):
    """Many roundings of the same values: in eight bits and in bfloat16."""
    keys = jax.random.split(jax.random.key(1), count)

    def both(key):
        half = links.to_bfloat16(values, key).astype(jnp.float32)
        return round_trip(values, key=key), half

    return jax.jit(jax.vmap(both))(keys)


@pytest.mark.parametrize("sign", [1, -1])
def test_chance_is_fair(sign):
    """The mean of n roundings is off by less than 5 standard errors."""
    values = jnp.array([1.0, 0.3, 1e-2, 1e-6]) * jnp.array([1, sign, 1, sign])
    for got in draws(values):
        spread = jnp.std(got, 0) / len(got) ** 0.5
        assert jnp.all(jnp.abs(jnp.mean(got, 0) - values) <= 5 * spread + 1e-12)
        # Two neighbours of each value, no others; the largest of a block has none.
        kinds = [len(np.unique(column)) for column in np.asarray(got).T]
        assert kinds == [1, 2, 2, 2]


def test_what_bfloat16_holds_and_what_is_no_number_stay():
    x = jnp.array([0.0, -1.5, np.inf, -np.inf, np.nan])
    got = links.to_bfloat16(x, jax.random.key(0)).astype(float)
    np.testing.assert_array_equal(got, x)
    # By chance nothing finite becomes infinite.
    most = np.array([1, -1], np.float32) * np.finfo(np.float32).max
    got = links.to_bfloat16(jnp.asarray(most), jax.random.key(0))
    np.testing.assert_array_equal(got[0], jnp.finfo(jnp.bfloat16).max)
    np.testing.assert_array_equal(got[1], -got[0])


@both_formats
def test_what_is_small_is_the_plain_chain(stored):
    inner, w = optax.adam(0.1), jnp.ones((4, 6))
    grads = trajectories.gradients((4, 6))
    wanted, _ = trajectories.parameters(inner, w, grads)
    got, _ = trajectories.parameters(wrappers.state_precision(inner, stored), w, grads)
    np.testing.assert_array_equal(got, wanted)


def test_a_state_stored_otherwise_is_refused():
    def step(made, taken):
        inner, w = optax.trace(0.9), jnp.ones(8)
        state = wrappers.state_precision(inner, min_size=1, **made).init(w)
        wrappers.state_precision(inner, min_size=1, **taken).update(w, state)

    said = "state_precision: the state was stored in bfloat16, .* stores '8bit'"
    with pytest.raises(ValueError, match=said):
        step({}, {"stored": "8bit"})
    said = r"scales of shape \(4,\) belong to codes of shape \(8,\) in blocks of 2"
    with pytest.raises(ValueError, match=said):
        step({"stored": "8bit"}, {"stored": "8bit", "block_size": 2})
    with pytest.raises(ValueError, match="the state has no key, it is one of rounding"):
        step({"rounding": "nearest"}, {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stored": "float8"}, "stored must be one of .* got 'float8'"),
        ({"rounding": "up"}, "rounding must be one of .* got 'up'"),
        ({"block_size": 0}, "block_size must be a whole number of 1 or more, got 0"),
        ({"block_size": 2.5}, "block_size must be a whole number .* got 2.5"),
        ({"block_size": None}, "block_size must be a whole number .* got None"),
        ({"min_size": -1}, "min_size must be a whole number of 0 or more, got -1"),
    ],
)
def test_an_argument_without_sense_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        wrappers.state_precision(optax.identity(), **changes)
