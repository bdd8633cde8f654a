"""Schedule-Free: right weights, a state in float32, and x from inside anything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import catalog, optimizers, schedules
from tests.optimizers import bowl, trajectories

ONES = [np.ones(3, np.float32)] * 4
read = optimizers.schedule_free_params


def test_the_warm_up_moves_z_by_the_rates_that_weigh_it():
    tx = optimizers.schedule_free_sgd(0.5, warmup_steps=4)
    y, state = trajectories.parameters(tx, jnp.zeros(3), ONES, compiled=True)
    # -(1/4 + 2/4 + 3/4 + 1) of the rate; weights 1, 4, 9 and 16.
    np.testing.assert_allclose(state.z, -2.5 * 0.5, rtol=1e-6)
    x = -(0.25 * 1 + 0.75 * 4 + 1.5 * 9 + 2.5 * 16) / 30 * 0.5
    np.testing.assert_allclose(read(state, y[-1]), x, rtol=1e-6)
    assert trajectories.rates(state) == [0.5]
    theirs = optax.contrib.schedule_free_sgd(0.5, warmup_steps=4)
    _, state = trajectories.parameters(theirs, jnp.zeros(3), ONES, compiled=True)
    np.testing.assert_allclose(state.z, -1.5 * 0.5, rtol=1e-6)


def test_at_a_rate_of_zero_bfloat16_parameters_stay_to_the_bit():
    start = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.bfloat16)
    grads = [np.ones(64, np.float32)] * 5
    for b1 in (0.9, 0.0):
        tx = optimizers.schedule_free_adamw(0.0, b1=b1)
        y, state = trajectories.parameters(tx, start, grads, compiled=True)
        for tree in (y[-1], state.z, state.x, read(state, y[-1])):
            np.testing.assert_array_equal(tree.astype(jnp.float32), start)
    # Optax solves for x with a division by b1, and what it rounds adds up.
    theirs = optax.contrib.schedule_free_adamw(0.0, b1=0.9)
    y, _ = trajectories.parameters(theirs, start, grads, compiled=True)
    assert jnp.abs(y[-1] - start).max() > 0.005


def test_bfloat16_parameters_are_those_of_float32_rounded_once():
    # Steps of a quarter of what bfloat16 resolves at 1.
    grads = [np.full(3, 2.0**-10, np.float32)] * 40
    tx = optimizers.schedule_free_sgd(1.0)
    wide, _ = trajectories.parameters(tx, jnp.ones(3), grads, compiled=True)
    narrow, _ = trajectories.parameters(
        tx, jnp.ones(3, jnp.bfloat16), grads, compiled=True
    )
    got, want = (np.array(x, np.float32)[:, 0] for x in (narrow, wide))
    # Half a unit in the last place, and that of an update that is rounded too.
    assert np.abs(got - want).max() <= 2.0**-9 * 1.01 and want[-1] < 0.99
    assert narrow[-1].dtype == jnp.bfloat16


def test_whatever_else_moves_the_parameters_is_undone():
    tx = optimizers.schedule_free_sgd(0.1)
    y, state = trajectories.parameters(tx, jnp.ones(3), ONES[:2], compiled=True)
    want, _ = trajectories.parameters(tx, y[-1], ONES[:1], state, compiled=True)
    got, _ = trajectories.parameters(tx, y[-1] + 0.5, ONES[:1], state, compiled=True)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("tx", "rate", "settings"),
    [
        (optimizers.schedule_free_sgd, 1.0, {}),
        (optimizers.schedule_free_adamw, 0.02, {"warmup_steps": 20, "r": 0.75}),
        (functools.partial(optimizers.schedule_free, optax.scale_by_adam()), 0.02, {}),
    ],
    ids=["sgd", "adamw", "around Adam"],
)
def test_the_average_reaches_the_bottom_after_a_first_gradient_of_zero(
    tx, rate, settings, dtype
):
    y, state, total = bowl.descend(
        tx(rate, **settings), dtype, watch=lambda state: state.weight_sum, zeros=1
    )
    assert bowl.loss(read(state, y)) < 1e-2
    # The sum of the weights does not stall, in bfloat16 neither.
    t = np.arange(1, 1001)
    rates = rate * np.minimum(1, t / settings.get("warmup_steps", 1))
    want = np.cumsum(t ** settings.get("r", 0.0) * rates**2)
    np.testing.assert_allclose(total, want, rtol=1e-4)
    assert total.dtype == "float32"


def test_r_is_the_power_of_the_step_in_the_weights():
    tx = optimizers.schedule_free_sgd(1.0, r=0.75)
    y, state = trajectories.parameters(tx, jnp.zeros(3), ONES, compiled=True)
    t = np.arange(1, 5)
    want = -np.sum(t**0.75 * t) / np.sum(t**0.75)
    np.testing.assert_allclose(read(state, y[-1]), want, rtol=1e-6)


def test_with_b1_0_it_is_gradient_descent_and_its_average():
    grads = trajectories.gradients((2, 3), steps=5)
    tx = optimizers.schedule_free_sgd(0.1, b1=0.0)
    y, state = trajectories.parameters(tx, jnp.ones((2, 3)), grads, compiled=True)
    want, _ = trajectories.parameters(
        optimizers.sgd(0.1), jnp.ones((2, 3)), grads, compiled=True
    )
    np.testing.assert_allclose(y, want, rtol=1e-5)
    np.testing.assert_allclose(read(state, y[-1]), np.mean(want, 0), rtol=1e-5)


def test_decay_is_at_y_or_at_z():
    ends = {}
    for at in ("y", "z"):
        tx = optimizers.schedule_free_sgd(0.5, b1=0.5, weight_decay=0.5, decay_at=at)
        grads = [np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(1)]
        _, state = trajectories.parameters(tx, jnp.ones(1), grads, compiled=True)
        ends[at] = float(state.z[0])
    # After the first step x = y = z = 1/4; then z is 3/16 and y 13/64.
    np.testing.assert_allclose(ends["z"], 0.25 * 0.75**2, rtol=1e-6)
    np.testing.assert_allclose(ends["y"], 3 / 16 - 13 / 256, rtol=1e-6)


def test_without_warm_up_optax_takes_the_same_steps():
    grads = trajectories.gradients((4,), steps=6)
    ours, theirs = (
        trajectories.parameters(tx, jnp.ones(4), grads, compiled=True)[0]
        for tx in (
            optimizers.schedule_free_adamw(0.1),
            optax.contrib.schedule_free_adamw(0.1, weight_decay=0.0),
        )
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


PARAMS = {"a": np.ones(3, np.float32), "b": 2 * np.ones(2, np.float32)}
HALF = {"a": True, "b": False}


def inside(tx):
    """The transformation inside others, and whether both leaves are its own."""
    labels = {"a": "one", "b": "two"}
    return {
        "chain": (optax.chain(optax.clip(9.0), tx), True),
        "masked": (optax.masked(tx, HALF), False),
        "partition": (optax.partition({"one": tx, "two": tx}, labels), True),
        "MultiSteps": (optax.MultiSteps(tx, 1).gradient_transformation(), True),
        "injected": (
            optax.inject_hyperparams(optimizers.schedule_free_sgd, ("decay_at",))(0.3),
            True,
        ),
    }


@pytest.mark.parametrize("where", inside(optax.identity()))
def test_x_is_found_wherever_the_state_is(where):
    bare = optimizers.schedule_free_sgd(0.3)
    grads = [{"a": np.ones(3), "b": -np.ones(2)}, {"a": np.ones(3), "b": np.ones(2)}]
    grads = [jax.tree.map(np.float32, g) for g in grads]
    y, state = trajectories.parameters(bare, PARAMS, grads, compiled=True)
    want = read(state, y[-1])
    tx, both = inside(bare)[where]
    start = tx.init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, read(start, PARAMS), PARAMS)
    y, state = trajectories.parameters(tx, PARAMS, grads, compiled=True)
    got = jax.jit(read)(state, y[-1])
    np.testing.assert_allclose(got["a"], want["a"], rtol=1e-6)
    assert np.abs(want["a"] - y[-1]["a"]).max() > 0.01
    np.testing.assert_allclose(got["b"], want["b"] if both else y[-1]["b"], rtol=1e-6)


def test_an_nnx_optimizer_is_evaluated_at_x():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    row = catalog.get("schedule_free_sgd")
    optimizer = nnx.Optimizer(model, row.build(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradient = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2))) ** 2))(model)
        optimizer.update(model, gradient)

    for _ in range(3):
        step(model, optimizer)
    params, trained = nnx.state(model, nnx.Param), np.array(model.kernel[...])
    nnx.update(model, row.eval_params(optimizer.opt_state, params))
    # The gradient is the same for both weights: so is the way from y to x.
    way = model.kernel[...] - trained
    np.testing.assert_allclose(way, way[::-1], rtol=1e-4)
    assert np.abs(way).min() > 1e-4


def test_the_state_has_two_or_three_floats_a_parameter():
    for make, want in (("schedule_free_sgd", 8), ("schedule_free_adamw", 12)):
        tx = getattr(optimizers, make)()
        got = trajectories.state_bytes(tx, jnp.ones((64, 64), jnp.bfloat16))
        assert got == want * 64**2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"schedule_free: b1 must be .* below 1, got 1\.0"),
        ({"b2": -0.1}, r"schedule_free_adamw: b2 must be at least 0 .*got -0\.1"),
        ({"eps": -1e-8}, "schedule_free_adamw: eps must be 0 or more, got -1e-08"),
        ({"weight_decay": -1.0}, r"weight_decay must be 0 or more, got -1\.0"),
        ({"warmup_steps": 2.5}, r"warmup_steps must be a whole number .*got 2\.5"),
        ({"decay_at": "x"}, r"decay_at must be one of \('y', 'z'\), got 'x'"),
        (
            {"learning_rate": schedules.per_group({"a": 1.0}, lambda tree: "a")},
            "schedule_free: learning_rate must be one for all leaves",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.schedule_free_adamw(**settings)


def test_missing_parameters_and_a_foreign_state_are_named():
    tx = optimizers.schedule_free_sgd(0.1)
    with pytest.raises(TypeError, match=r"schedule_free: needs the parameters: update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="there is no ScheduleFreeState in the state"):
        read(optax.adam(0.1).init(jnp.ones(2)), jnp.ones(2))
