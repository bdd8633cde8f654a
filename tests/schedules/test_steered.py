"""Values of a schedule in the state of the run: one stable run, many branches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import inspection, optimizers, schedules, testing
from optlab.lab import checkpoints

PARAMS = {"kernel": jnp.eye(3) + 0.5, "bias": jnp.ones(3)}


def stable(peak=0.1, **values):
    return schedules.open_wsd(
        peak, decay_steps=4, warmup_steps=2, end_value=0.01, **values
    )


def never(build=stable):
    return schedules.steered(build, decay_start=schedules.NEVER)


def chain():
    return optimizers.muon(never(), rest=optimizers.adamw(never()))


class Run:
    """A compiled training step that counts its compilations."""

    def __init__(self, tx):
        self.tx, self.compilations = tx, 0
        self._step = jax.jit(self._update)

    def _update(self, params, state):
        self.compilations += 1
        gradient = jax.grad(lambda p: optax.tree.norm(p, squared=True))(params)
        updates, state = self.tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def __call__(self, params, state, steps):
        rates = []
        for _ in range(steps):
            params, state = self._step(params, state)
            found = inspection.hyperparams(state)
            rates.append({float(group["learning_rate"]) for group in found.values()})
        return params, state, rates


def store(folder):
    return checkpoints.Checkpoints(folder / "checkpoints", {"run": "stable"}, keep=1)


def test_one_stable_run_and_many_decay_branches(tmp_path):
    run = Run(chain())
    params, state = PARAMS, run.tx.init(PARAMS)
    for step in (3, 6, 9):
        params, state, rates = run(params, state, 3)
        store(tmp_path / str(step)).save(step, (params, state))
    assert rates == [{float(np.float32(0.1))}] * 3
    assert run.compilations == 1

    # Each branch as after a restart: a chain built anew, a state read from the disk.
    branch = Run(chain())
    for start in (3, 6, 9):
        like = (PARAMS, branch.tx.init(PARAMS))
        step, (params, state) = store(tmp_path / str(start)).restore(like)
        assert step == start
        state = optax.tree.set(state, decay_start=jnp.int32(start + 1))
        params, state, rates = branch(params, state, 7)
        want = stable(decay_start=start + 1)(jnp.arange(start, start + 7))
        assert rates == [{float(rate)} for rate in want]
        assert rates[0] == rates[1] == {float(np.float32(0.1))}
        assert rates[-1] == {float(np.float32(0.01))}
    assert branch.compilations == 1


def test_a_branch_equals_a_run_whose_start_was_known_from_the_beginning(tmp_path):
    run = Run(chain())
    params, state, _ = run(PARAMS, run.tx.init(PARAMS), 5)
    store(tmp_path).save(5, (params, state))
    _, (params, state) = store(tmp_path).restore(
        jax.tree.map(jnp.zeros_like, (params, state))
    )
    state = optax.tree.set(state, decay_start=jnp.int32(5))
    branched, _, rates = run(params, state, 6)

    known = functools.partial(stable, decay_start=5)
    whole = Run(optimizers.muon(known(), rest=optimizers.adamw(known())))
    wanted, _, wanted_rates = whole(PARAMS, whole.tx.init(PARAMS), 11)
    assert rates == wanted_rates[5:]
    for name in PARAMS:
        np.testing.assert_allclose(branched[name], wanted[name], rtol=1e-6)
    assert run.compilations == 1


def test_a_started_decay_is_saved_and_goes_on_after_a_restart(tmp_path):
    run = Run(chain())
    params, state, _ = run(PARAMS, run.tx.init(PARAMS), 3)
    state = optax.tree.set(state, decay_start=jnp.int32(3))
    params, state, _ = run(params, state, 2)
    store(tmp_path).save(5, (params, state))
    uninterrupted = run(params, state, 3)[2]
    again = Run(chain())
    _, (params, state) = store(tmp_path).restore((PARAMS, again.tx.init(PARAMS)))
    assert again(params, state, 3)[2] == uninterrupted
    want = stable(decay_start=3)(jnp.arange(5, 8))
    assert uninterrupted == [{float(rate)} for rate in want]


def test_an_annealing_started_at_run_time_survives_a_restart(tmp_path):
    def build(**values):
        return schedules.infinite(
            0.1,
            stable_value=0.05,
            end_value=0.001,
            cooldown_steps=3,
            annealing_steps=5,
            **values,
        )

    def tx():
        steered = schedules.steered(build, annealing_start=schedules.NEVER)
        return optimizers.adamw(steered)

    run = Run(tx())
    params, state, _ = run(PARAMS, run.tx.init(PARAMS), 6)
    state = optax.tree.set(state, annealing_start=jnp.int32(6))
    params, state, _ = run(params, state, 2)
    store(tmp_path).save(8, (params, state))
    again = Run(tx())
    _, (params, state) = store(tmp_path).restore((PARAMS, again.tx.init(PARAMS)))
    want = build(annealing_start=6)(jnp.arange(8, 13))
    assert again(params, state, 5)[2] == [{float(rate)} for rate in want]
    assert want[-1] == np.float32(0.001)


def test_called_with_a_count_it_has_its_initial_values_so_optax_can_use_it():
    schedule = schedules.steered(stable, decay_start=3)
    steps = jnp.arange(12)
    want = stable(decay_start=3)(steps)
    np.testing.assert_array_equal(schedule(steps), want)
    np.testing.assert_array_equal(
        schedule(steps, decay_start=5), stable(decay_start=5)(steps)
    )
    tx = optax.sgd(schedule)
    update, state = jax.jit(tx.update), tx.init(jnp.ones(()))
    for step in range(9):
        got, state = update(jnp.ones(()), state)
        assert got == -want[step]


def test_values_that_are_no_steps_can_be_steered_too():
    tx = optimizers.sgd(
        schedules.steered(stable, peak=0.5, decay_start=schedules.NEVER), momentum=0.0
    )
    state = tx.init(jnp.ones(1))
    for peak in (0.5, 0.25):
        state = optax.tree.set(state, peak=jnp.float32(peak), count=jnp.int32(50))
        updates, state = tx.update(jnp.ones(1), state)
        assert updates == -peak


def test_eager_calls_compile_once():
    traces = []

    def build(**values):
        traces.append(1)
        return stable(**values)

    schedule = never(build)
    checked = len(traces)  # the check of the initial values
    for start in (5, 6, 7):
        schedule(jnp.int32(9), decay_start=jnp.int32(start))
    assert len(traces) == checked + 1


@pytest.mark.parametrize("of", [optimizers.adamw, optimizers.muon])
def test_a_chain_with_a_steered_schedule_keeps_every_promise(of):
    rest = {"rest": optimizers.adamw(never())} if of is optimizers.muon else {}
    promises = [
        "init_on_abstract_parameters",
        "state_layout_is_stable",
        "no_recompilation",
        "no_static_settings_in_state",
        "count_saturates",
        "donation",
        "tree_map_params",
        "multi_steps",
        "scan",
        "vmap",
        "learning_rate_is_readable",
        "resume_orbax",
        "resume_msgpack",
    ]
    report = testing.check(of(never(), **rest), promises=promises, print=False)
    assert {outcome.status for outcome in report} == {"pass"}, str(report)


def test_is_set_in_place_in_an_optimizer_of_nnx():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, chain(), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        optimizer.update(model, nnx.state(model, nnx.Param))

    def rates(steps):
        seen = []
        for _ in range(steps):
            step(model, optimizer)
            found = inspection.hyperparams(optimizer.opt_state)
            seen.append({float(group["learning_rate"]) for group in found.values()})
        return seen

    rates(5)
    found = optax.tree.get_all_with_path(optimizer.opt_state, "decay_start")
    assert len(found) == 2
    for _, value in found:
        value[...] = jnp.int32(5)
    want = stable(decay_start=5)(jnp.arange(5, 11))
    assert rates(6) == [{float(rate)} for rate in want]
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({}, ValueError, "name at least one value"),
        ({"count": 3}, ValueError, "'count' has a place of its own"),
        ({"learning_rate": 3.0}, ValueError, "'learning_rate' has a place"),
        ({"decay_start": "3"}, TypeError, "decay_start must be a number, got '3'"),
        ({"decay_start": None}, TypeError, "decay_start must be a number"),
        ({"decay_start": True}, TypeError, "decay_start must be a number, got True"),
        ({"decay_start": jnp.ones(3)}, ValueError, r"a scalar, got shape \(3,\)"),
        ({"decay_start": 1}, ValueError, "decay_start must be at least 2"),
        ({"start": 5}, TypeError, "start"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, error, said):
    with pytest.raises(error, match=said):
        schedules.steered(stable, **values)


def test_a_builder_of_no_schedule_is_refused():
    with pytest.raises(TypeError, match="build must return a schedule, got float"):
        schedules.steered(lambda peak: peak, peak=0.5)
