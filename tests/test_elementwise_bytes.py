"""What steps of elementwise methods read and write, from compiled programs."""

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import elementwise
from optlab import links

PARAMS = elementwise.tree(1, 256)  # large enough to be summed where it lies


@pytest.fixture(scope="module")
def adamw():
    return elementwise.stepping(optax.adamw(1e-3), {}, PARAMS, ()).counted


@pytest.mark.parametrize(
    ("name", "most"),
    [
        # Nothing is converted or copied that is float32 already.
        ("adamw", 1.02),
        # One pass, in three loops as Optax's.
        ("adabelief", 1.2),
        ("hypergradient", 1.5),
        # A sum over the leaf comes before the step.
        ("cautious", 1.5),
        ("adamp", 2.2),
        ("prodigy", 2.5),
        ("dadapt_adam", 2.3),
    ],
)
def test_a_step_moves_at_most_so_many_times_the_bytes_of_adamw(adamw, name, most):
    tx, extra = elementwise.methods([name])[name]
    assert elementwise.stepping(tx, extra, PARAMS, ()).counted <= most * adamw


@pytest.mark.parametrize(
    ("name", "arrays"), [("schedule_free_sgd", 1), ("schedule_free_adamw", 2)]
)
def test_averages_are_replaced_without_copies_of_the_old_ones(name, arrays):
    tx, extra = elementwise.methods([name])[name]
    program = elementwise.stepping(tx, extra, PARAMS, ())
    # The step, and in AdamW its divisor; unordered, three copies besides.
    assert program.temporary < 1.1 * arrays * elementwise.bytes_of(PARAMS)


def test_what_comes_after_a_sum_takes_the_place_of_what_was_summed():
    def step(old, new, wait):
        slope = jnp.sum(old * new)
        return (links.after(new, slope) if wait else 2 * new), slope

    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    program = jax.jit(step, static_argnums=2, donate_argnums=0)
    moved = []
    for wait in (False, True):
        costs = program.lower(x, x, wait).compile().cost_analysis()
        moved.append((costs or {})["bytes accessed"])
    assert moved[1] <= 0.8 * moved[0]
    number, new = jnp.float32(3.0), {"w": jnp.ones(2, jnp.bfloat16)}
    assert links.after(new, number)["w"].dtype == jnp.bfloat16
    assert jnp.array_equal(links.after(new, number)["w"], new["w"])
    assert jnp.array_equal(links.after(new, {"w": jnp.zeros(2)})["w"], new["w"])
    assert jnp.isnan(links.after(new, number * jnp.nan)["w"]).all()
