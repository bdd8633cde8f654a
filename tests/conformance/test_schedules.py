"""Every schedule of the catalogue keeps the contract of steps.

The step counts the updates already applied. At `warmup_steps` the rate is exactly the
peak, from `total_steps` on exactly the end value, and in between it never rises.
"""

import inspect
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import catalog, links
from tests import same_bits

LAST = 2**31 - 1
PEAK = 0.3
ROWS = catalog.rows("schedules")

# Those that warm up more than once.
RISE_AGAIN = ("cycles",)

# Arguments without effect as long as others have their defaults.
WITHOUT_EFFECT = {"power": ("end_value",)}


def parameters(row):
    return inspect.signature(row.build).parameters


def takes(row, *arguments):
    return set(arguments) <= set(parameters(row))


def over(rows):
    return pytest.mark.parametrize("row", list(rows), ids=lambda row: row.name)


def with_argument(*arguments):
    return over(row for row in ROWS if takes(row, *arguments))


every_row = over(ROWS)
# Those that end: their defaults say when, and where they end may be chosen.
every_end = over(
    row for row in ROWS if takes(row, "end_value") and "total_steps" in row.defaults
)


def build(row, **changes):
    peak = {"peak": PEAK} if takes(row, "peak") else {}
    return row.build(**{**row.defaults, **peak, **changes})


def length(row):
    """Steps after which no default changes the rate any more, or a long run."""
    return row.defaults.get("total_steps", 1000)


def counts(row):
    grid = np.unique(np.linspace(0, length(row) + 3, 60).astype(int))
    return np.append(grid, [2**24, 2**24 + 1, LAST]).astype(np.int32)


def numbers(row):
    """The arguments that may be traced, with values: all that are not steps or None."""
    given = {key: value.default for key, value in parameters(row).items()}
    given |= {**row.defaults, **({"peak": PEAK} if takes(row, "peak") else {})}
    return {
        key: value
        for key, value in given.items()
        if isinstance(value, float) and key not in row.static
    }


@with_argument("warmup_steps", "peak")
@pytest.mark.parametrize("warmup", [0, 1, 7, 50])
def test_at_the_end_of_the_warmup_the_rate_is_exactly_the_peak(row, warmup):
    schedule = build(row, warmup_steps=warmup)
    assert schedule(warmup) == np.float32(PEAK)
    assert jax.jit(schedule)(jnp.int32(warmup)) == np.float32(PEAK)


@with_argument("warmup_steps", "init_value")
def test_the_warmup_starts_at_the_initial_value_and_rises_steadily(row):
    schedule = build(row, warmup_steps=7, init_value=0.125)
    rates = np.array([schedule(t) for t in range(8)])
    assert rates[0] == 0.125
    np.testing.assert_allclose(np.diff(rates), (PEAK - 0.125) / 7, rtol=1e-5)


@every_end
@pytest.mark.parametrize("end_value", [0.0, 0.01])
def test_from_the_last_step_on_the_rate_is_exactly_the_end_value(row, end_value):
    if end_value == 0 and row.defaults.get("end_value"):
        with pytest.raises(ValueError, match="end_value must be positive"):
            build(row, end_value=end_value)
        return
    schedule, total = build(row, end_value=end_value), length(row)
    for count in (total, total + 1, 2**24 + 1, LAST):
        assert schedule(count) == np.float32(end_value)
        assert jax.jit(schedule)(jnp.int32(count)) == np.float32(end_value)
    assert schedule(total - 1) > np.float32(end_value)


@over(row for row in ROWS if row.name not in RISE_AGAIN)
def test_the_rate_rises_to_its_peak_and_never_again(row):
    rates = np.asarray(jax.vmap(build(row))(jnp.arange(1200)))
    top = int(np.argmax(rates))
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert not takes(row, "peak") or rates[top] == np.float32(PEAK)


@every_row
def test_the_rate_is_finite_and_within_bounds_at_every_count(row):
    rates = jax.vmap(build(row))(jnp.asarray(counts(row)))
    assert np.isfinite(rates).all()
    assert (rates >= 0).all() and (rates <= np.float32(PEAK)).all()


@every_row
def test_int_int32_traced_and_vmapped_counts_agree_bit_for_bit(row):
    schedule = build(row)
    compiled = jax.jit(schedule)
    many = jnp.asarray(counts(row))
    eager = np.asarray(schedule(many))
    assert eager.dtype == np.float32 and eager.shape == many.shape
    for whole in (compiled, jax.vmap(schedule), lambda n: jax.lax.map(schedule, n)):
        same_bits.require(whole(many), eager)
    for count, wanted in zip(counts(row)[::4], eager[::4], strict=True):
        one = int(count), np.uint32(count), jnp.int32(count)
        for got in (*map(schedule, one), compiled(one[-1])):
            assert jnp.shape(got) == ()
            same_bits.require(got, wanted)


@every_row
def test_the_chain_applies_the_rate_of_the_updates_before_it(row):
    schedule = build(row)
    for link in (optax.scale_by_learning_rate, links.scale_by_learning_rate):
        tx = link(schedule)
        update = jax.jit(tx.update)
        state = tx.init(jnp.ones(()))
        for count in range(4):
            got, state = update(jnp.ones(()), state)
            # Between two entries of a table: rounding of their difference.
            np.testing.assert_allclose(got, -schedule(count), rtol=2e-6, atol=1e-9)
    assert state.learning_rate == schedule(3)


@every_row
def test_the_state_shows_every_rate_and_a_run_resumed_anywhere_goes_on_with_it(row):
    tx, steps = links.scale_by_learning_rate(build(row)), length(row) + 20

    @jax.jit
    def run(state, gradients):
        def step(state, gradient):
            _, state = tx.update(gradient, state)
            return state, state.learning_rate

        return jax.lax.scan(step, state, gradients)

    start = tx.init(jnp.ones(()))
    _, whole = run(start, jnp.ones(steps))
    same_bits.require(whole, build(row)(jnp.arange(steps)))
    for done in (30, length(row) - 120):
        state, first = run(start, jnp.ones(done))
        leaves, structure = jax.tree.flatten(state)
        file = io.BytesIO()
        np.savez(file, *leaves)
        file.seek(0)
        saved = np.load(file)
        restored = [jnp.asarray(saved[name]) for name in saved.files]
        state = jax.tree.unflatten(structure, restored)
        _, rest = run(state, jnp.ones(steps - done))
        np.testing.assert_array_equal(np.append(first, rest), whole)


@every_row
def test_a_schedule_may_drive_other_hyperparameters(row):
    schedule = build(row)
    tx = optax.inject_hyperparams(optax.adamw)(
        learning_rate=0.1, b2=schedule, weight_decay=schedule
    )
    update = jax.jit(tx.update)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for count in range(3):
        updates, state = update({"w": jnp.ones(2)}, state, params)
        for name in ("b2", "weight_decay"):
            np.testing.assert_allclose(
                state.hyperparams[name], schedule(count), rtol=2e-6
            )
        assert np.isfinite(updates["w"]).all()


@over(row for row in ROWS if numbers(row))
def test_all_numbers_may_be_traced_and_are_one_compilation(row):
    traces = []
    many = jnp.asarray(counts(row))

    @jax.jit
    def rates(values):
        traces.append(values)
        return build(row, **values)(many)

    for scale in (1.0, 1.1, 1.5):
        values = {key: scale * value for key, value in numbers(row).items()}
        wanted = build(row, **values)(many)
        np.testing.assert_allclose(rates(values), wanted, rtol=3e-6, atol=1e-9)
    assert len(traces) == 1


@over(row for row in ROWS if numbers(row))
def test_gradients_in_every_number_are_finite_at_every_count(row):
    def rates(values):
        return build(row, **values)(jnp.asarray(counts(row)))

    slopes = jax.jacobian(rates)({k: jnp.float32(v) for k, v in numbers(row).items()})
    for name, slope in slopes.items():
        assert np.isfinite(slope).all(), name
        assert slope.any() or name in WITHOUT_EFFECT.get(row.name, ()), name
