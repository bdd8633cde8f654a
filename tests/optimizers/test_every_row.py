"""What every optimizer of the catalogue keeps beside the conformance suite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import catalog, inspection, optimizers, schedules, testing
from tests.optimizers import trajectories

ROWS = [row.whole() for row in catalog.rows("optimizers")]
SHAPES = {"kernel": (4, 6), "bias": (6,)}

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
# The others need more than a gradient, which their own tests get from a model.
every_plain_row = pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.needs], ids=lambda row: row.name
)


def build(row, rate=0.01):
    changes = {"learning_rate": rate}
    if row.applies_to == "matrix":
        changes["rest"] = optimizers.adamw(rate)
    if "initial_distance" in (row.build.__kwdefaults__ or {}):
        # From 1e-6 it would take a hundred steps.
        changes["initial_distance"] = 0.01
    return row.build(**{**row.defaults, **changes})


def params(dtype=jnp.float32):
    return {name: jnp.ones(shape, dtype) for name, shape in SHAPES.items()}


def grads(steps, dtype=np.float32):
    return [
        {name: jnp.asarray(g, dtype) for name, g in zip(SHAPES, pair, strict=True)}
        for pair in zip(
            *(trajectories.gradients(shape, steps) for shape in SHAPES.values()),
            strict=True,
        )
    ]


def loss(params):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


def extra(row):
    supply = testing.Subject(row).extra_args
    return lambda params, gradient: supply(params, gradient, loss)


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@every_row
def test_constants_and_schedules_share_one_state_layout(row):
    plain = build(row).init(params())
    scheduled = build(row, schedules.linear(0.01, total_steps=9)).init(params())
    assert jax.tree.structure(plain) == jax.tree.structure(scheduled)
    for one, other in zip(*map(jax.tree.leaves, (plain, scheduled)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@every_row
def test_a_run_can_change_its_schedule_when_it_resumes(row):
    gradients = grads(5)
    run = functools.partial(trajectories.parameters, extra=extra(row))
    _, state = run(build(row), params(), gradients[:3])
    saved = jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), state)
    changed = build(row, schedules.linear(0.5, total_steps=8))
    _, state = run(changed, params(), gradients[3:4], saved)
    # Step 3 of the new schedule: the count went on.
    assert set(trajectories.rates(state)) == {0.5 * 5 / 8}


@every_row
def test_compiled_equals_eager(row):
    run = functools.partial(trajectories.parameters, extra=extra(row))
    eager, _ = run(build(row), params(), grads(3))
    compiled, _ = run(build(row), params(), grads(3), compiled=True)
    for name in SHAPES:
        # A few float32 roundings times the slope of Newton-Schulz at zero, 485.
        np.testing.assert_allclose(compiled[-1][name], eager[-1][name], atol=3e-6)


@every_row
def test_with_array_hyperparameters_updates_keep_bfloat16(row):
    numbers = {
        name: jnp.float32(value)
        for name, value in (("learning_rate", 0.1), ("weight_decay", 0.1), ("b1", 0.5))
        if name == "learning_rate" or name in row.build.__annotations__
    }
    tx = row.build(**{**row.defaults, **numbers})
    half = params(jnp.bfloat16)
    gradient = grads(1, jnp.bfloat16)[0]
    updates, state = tx.update(
        gradient, tx.init(half), half, **extra(row)(half, gradient)
    )
    assert {u.dtype.name for u in jax.tree.leaves(updates)} == {"bfloat16"}
    floating = [
        x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert {x.dtype.name for x in floating} == {"float32"}


class Model(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.up(x)))


@every_plain_row
def test_trains_a_flax_model(row):
    model = Model(nnx.Rngs(0))
    # To some a rate is a factor on the one they find, to one the length of a step.
    own = row.family == "tuning free" or row.name == "adagrad_norm"
    rate = row.defaults["learning_rate"] if own else 0.02
    optimizer = nnx.Optimizer(model, build(row, rate), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)
    y = jnp.sum(jnp.abs(x), axis=1, keepdims=True)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(x) - y) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(40)]
    # A rate that is being found may just have gone too far.
    reached = min(losses) if row.family == "tuning free" else losses[-1]
    assert reached < 0.5 * losses[0]
    found = inspection.hyperparams(optimizer.opt_state)
    assert [int(group["count"]) for group in found.values()] == [40] * len(found)
    assert len(found) == (2 if row.applies_to == "matrix" else 1)


def test_optax_alone_keeps_two_layouts():
    # The reason for a link of our own.
    plain, scheduled = (
        optax.adamw(rate).init(params()) for rate in (0.01, lambda count: 0.01)
    )
    assert jax.tree.structure(plain) != jax.tree.structure(scheduled)
