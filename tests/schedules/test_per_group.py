"""One schedule for each group, one count for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import inspection, optimizers, schedules, testing

PARAMS = {"embedding": jnp.ones((4, 3)), "layers": {"kernel": jnp.eye(3) * 2.0}}
LABELS = {"embedding": "embedding", "layers": "rest"}
RATES = {
    "embedding": 0.125,
    "rest": schedules.linear(0.5, total_steps=8, warmup_steps=2),
}


def by_name(tree):
    def label(path, leaf):
        return "embedding" if "embedding" in str(path) else "rest"

    return jax.tree_util.tree_map_with_path(label, tree)


def train(tx, steps=5, params=PARAMS):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("labels", [LABELS, by_name])
@pytest.mark.parametrize("of", [optimizers.adamw, optimizers.sgd, optimizers.lion])
def test_equals_an_optimizer_of_its_own_for_each_group(of, labels):
    ours, _ = train(of(schedules.per_group(RATES, labels)))
    own = {name: of(rate) for name, rate in RATES.items()}
    theirs, _ = train(optax.partition(own, by_name))
    for got, want in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_one_count_and_every_rate_are_in_the_state():
    _, state = train(optimizers.adamw(schedules.per_group(RATES, LABELS)))
    link = state[-1]
    assert link.count == 5
    assert link.learning_rate == {"embedding": 0.125, "rest": RATES["rest"](4)}
    found = inspection.hyperparams(state)
    assert [int(group["count"]) for group in found.values()] == [5, 5]


def test_a_steered_group_is_set_by_name():
    def stable(**values):
        return schedules.open_wsd(0.5, decay_steps=4, **values)

    steered = schedules.steered(stable, decay_start=schedules.NEVER)
    tx = optimizers.sgd(
        schedules.per_group({**RATES, "rest": steered}, LABELS), momentum=0.0
    )
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state)
    state = optax.tree.set(state, decay_start=jnp.int32(0))
    _, state = tx.update(PARAMS, state)
    assert state[-1].learning_rate == {
        "embedding": 0.125,
        "rest": stable(decay_start=0)(1),
    }


def test_the_matrices_of_muon_have_groups_too():
    layers = {name: {"kernel": jnp.eye(3)} for name in ("first", "last")}

    def labels(tree):
        return {"first": "slow", "last": "fast", "bias": "fast"}

    rates = schedules.per_group({"slow": 0.125, "fast": 0.25}, labels)
    tx = optimizers.muon(rates, rest=optimizers.sgd(0.5))
    params = {**layers, "bias": jnp.ones(3)}
    updates, state = tx.update(params, tx.init(params), params)
    first, last = (updates[name]["kernel"] for name in ("first", "last"))
    np.testing.assert_allclose(last, 2 * first, rtol=1e-6)
    assert set(inspection.hyperparams(state)) == {"matrix/slow", "matrix/fast", "rest"}


def test_trains_a_model_of_nnx():
    model = nnx.Sequential(nnx.Embed(4, 3, rngs=nnx.Rngs(0)))
    rates = schedules.per_group({"embedding": 0.5, "rest": 0.0}, by_name)
    optimizer = nnx.Optimizer(model, optimizers.sgd(rates, momentum=0.0), wrt=nnx.Param)
    before = jax.tree.leaves(nnx.state(model, nnx.Param))[0] + 0
    optimizer.update(model, nnx.state(model, nnx.Param))
    after = jax.tree.leaves(nnx.state(model, nnx.Param))[0]
    np.testing.assert_allclose(after, 0.5 * before, rtol=1e-6)


def test_traced_rates_compile_once():
    traces = []

    @jax.jit
    def update(rate, state):
        traces.append(1)
        rates = schedules.per_group({**RATES, "embedding": rate}, LABELS)
        return optimizers.sgd(rates, momentum=0.0).update(PARAMS, state)[0]

    tx = optimizers.sgd(schedules.per_group(RATES, LABELS), momentum=0.0)
    for rate in (0.5, 0.25):
        updates = update(rate, tx.init(PARAMS))
        np.testing.assert_allclose(updates["embedding"], -rate)
    assert len(traces) == 1


def test_a_chain_with_groups_keeps_every_promise():
    promises = [
        "init_on_abstract_parameters",
        "state_layout_is_stable",
        "no_recompilation",
        "no_static_settings_in_state",
        "donation",
        "tree_map_params",
        "masked",
        "partition",
        "vmap",
        "resume_orbax",
        "resume_msgpack",
    ]
    tx = optimizers.adamw(schedules.per_group(RATES, by_name))
    report = testing.check(tx, promises=promises, print=False)
    assert {outcome.status for outcome in report} == {"pass"}, str(report)


def test_groups_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="there is no group"):
        schedules.per_group({}, LABELS)
    with pytest.raises(TypeError, match="name of a group is a string, got 3"):
        schedules.per_group({3: 0.1}, LABELS)
    tx = optimizers.sgd(schedules.per_group({"embedding": 0.1}, LABELS))
    with pytest.raises(ValueError, match=r"leaf 'layers' has the label 'rest'"):
        tx.update(PARAMS, tx.init(PARAMS))
