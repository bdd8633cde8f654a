"""The rate in force, read from the state of any chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import inspection, links, optimizers, schedules

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def rate(count):
    return 0.5 / (1 + count)


def after(tx, steps=3):
    state = tx.init(PARAMS)
    for _ in range(steps):
        _, state = tx.update(PARAMS, state, PARAMS)
    return state


def read(state):
    return {
        group: (int(numbers["count"]), float(numbers["learning_rate"]))
        for group, numbers in inspection.hyperparams(state).items()
    }


def test_each_group_of_muon_shows_its_own_rate():
    tx = optimizers.muon(rate, rest=optimizers.adamw(0.25))
    assert read(tx.init(PARAMS)) == {"matrix": (0, 0.5), "rest": (0, 0.25)}
    third = float(np.float32(rate(2)))
    assert read(after(tx)) == {"matrix": (3, third), "rest": (3, 0.25)}


WRAPPED = {
    "alone": links.scale_by_learning_rate(0.25),
    "chain": optax.chain(optax.clip(1.0), optimizers.sgd(0.25, momentum=0.5)),
    "named chain": optax.named_chain(("sgd", optimizers.sgd(0.25))),
    "masked": optax.masked(optimizers.sgd(0.25), {"kernel": True, "bias": False}),
    "in float32": links.in_float32(optimizers.adamw(0.25)),
    "many steps": optax.MultiSteps(optimizers.adamw(0.25), 1).gradient_transformation(),
    "injected": optax.inject_hyperparams(optimizers.sgd)(0.25),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_rate_is_found_however_deep_it_lies(name):
    (numbers,) = read(after(WRAPPED[name])).values()
    assert numbers == (3, 0.25)


def test_a_second_link_in_a_group_gets_its_path():
    tx = optax.chain(optimizers.sgd(0.25), optimizers.sgd(0.5))
    assert read(after(tx)) == {"": (3, 0.25), "1": (3, 0.5)}


def test_nested_groups_are_joined_by_a_slash():
    tx = optax.partition(
        {"hidden": optimizers.muon(0.5, rest=optimizers.sgd(0.25))},
        {"kernel": "hidden", "bias": "hidden"},
    )
    assert set(read(after(tx))) == {"hidden/matrix", "hidden/rest"}


def test_without_our_link_there_is_nothing_to_read():
    assert inspection.hyperparams(after(optax.adamw(0.1))) == {}
    assert inspection.hyperparams(()) == {}


def test_may_be_called_under_jit():
    state = after(optimizers.adamw(schedules.constant(0.25)))
    found = jax.jit(inspection.hyperparams)(state)
    assert found[""]["learning_rate"] == 0.25


def test_reads_the_state_of_a_flax_optimizer():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tx = optimizers.muon(0.5, rest=optimizers.sgd(0.25))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert read(optimizer.opt_state) == {"matrix": (1, 0.5), "rest": (1, 0.25)}
    assert isinstance(
        inspection.hyperparams(optimizer.opt_state)["matrix"]["count"], jax.Array
    )


def test_a_vmapped_state_shows_one_rate_for_each_run():
    tx = optimizers.sgd(0.25)
    state = jax.vmap(tx.init)(jnp.ones((3, 2)))
    assert inspection.hyperparams(state)[""]["learning_rate"].shape == (3,)


def test_an_abstract_state_shows_its_groups():
    state = jax.eval_shape(
        optimizers.muon(rate, rest=optimizers.adamw(0.25)).init, PARAMS
    )
    found = inspection.hyperparams(state)
    assert {group: found[group]["count"].dtype for group in found} == {
        "matrix": jnp.int32,
        "rest": jnp.int32,
    }


def stable(**values):
    return schedules.open_wsd(0.5, decay_steps=4, **values)


def test_the_values_of_a_steered_schedule_are_shown():
    tx = optimizers.adamw(schedules.steered(stable, decay_start=9))
    (numbers,) = inspection.hyperparams(after(tx)).values()
    assert numbers == {"count": 3, "learning_rate": 0.5, "decay_start": 9}


def test_groups_of_one_link_are_shown_below_its_own_group():
    rates = schedules.per_group(
        {"bias": 0.125, "kernel": schedules.steered(stable, decay_start=2)},
        {"kernel": "kernel", "bias": "bias"},
    )
    found = inspection.hyperparams(after(optimizers.sgd(rates)))
    assert found == {
        "bias": {"count": 3, "learning_rate": 0.125},
        "kernel": {"count": 3, "learning_rate": 0.5, "decay_start": 2},
    }
    inside = optax.partition(
        {
            "all": optimizers.sgd(
                schedules.per_group({"x": 0.25}, lambda tree: jax.tree.map(str, tree))
            )
        },
        {"kernel": "all", "bias": "all"},
    )
    assert list(inspection.hyperparams(inside.init(PARAMS))) == ["all/x"]
