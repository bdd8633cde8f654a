"""Promises about a chain inside the things that Optax and JAX build around it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import inspection
from optlab.testing import _compare
from optlab.testing._report import Broken, NotApplicable
from optlab.testing._subject import STEPS, Point, Subject

# With a traced b2, 1 - b2 is a float32 difference: 1 - 0.999 is off by 2e-5.
TRACED_TOLERANCE = 1e-4


def unknown_extra_arguments(subject: Subject) -> str:
    """Arguments meant for another link of a chain are let through."""
    params, state = subject.params, subject.trajectory()[0].state

    def update(grads, state):
        extra = subject.extra_args(params, grads, lambda p: optax.tree.vdot(grads, p))
        return subject.tx.update(grads, state, params, **extra, not_for_me=1.0)

    try:
        jax.eval_shape(update, subject.gradients(0), state)
    except TypeError as error:
        raise Broken(f"{error}; wrap it in optax.with_extra_args_support") from error
    return ""


def inject_hyperparams(subject: Subject) -> str:
    """Steps are the same when Optax traces every numeric hyperparameter."""
    build = subject.factory
    if build is None:
        raise NotApplicable("the chain is already built; pass a Row or a factory")
    static = subject.row.static if subject.row else _not_floats(subject.defaults)
    factory = optax.inject_hyperparams(build, static, hyperparam_dtype=jnp.float32)
    tx = factory(**subject.defaults)
    seen = subject.require_steps_agree(tx, TRACED_TOLERANCE)
    half = _compare.cast(subject.params, jnp.bfloat16)
    grads = subject.gradients(0, like=half)
    _, _, wanted = subject.step(half, subject.tx.init(half), grads)
    _, _, got = subject.step_of(tx)(half, tx.init(half), grads)
    worst, where = _compare.gap(got, wanted)
    rounded = _compare.require_small(worst, f"bfloat16: {where}", 2.0**-7)
    return f"float32: {seen}; bfloat16: {rounded}"


def chain(subject: Subject) -> str:
    """Steps are the same inside `optax.chain`."""
    tx = optax.chain(optax.identity(), subject.tx)
    return subject.require_steps_agree(tx, subject.tolerance)


def masked(subject: Subject) -> str:
    """`optax.masked` updates the chosen leaves alone and passes the others through."""
    mask = _every_other_leaf(subject.params)
    tx = optax.masked(subject.tx, mask)
    return _require_routed(subject, tx, mask, lambda grad: grad)


def partition(subject: Subject) -> str:
    """`optax.partition` updates one group; the other group has its own chain."""
    mask = _every_other_leaf(subject.params)
    labels = jax.tree.map(lambda chosen: "mine" if chosen else "frozen", mask)
    tx = optax.partition({"mine": subject.tx, "frozen": optax.set_to_zero()}, labels)
    return _require_routed(subject, tx, mask, np.zeros_like)


def multi_steps(subject: Subject) -> str:
    """`optax.MultiSteps` of three gradients is one step on their mean."""
    multi = optax.MultiSteps(subject.tx, every_k_schedule=3)
    tx = multi.gradient_transformation()
    step, params, state = subject.step_of(tx), subject.params, tx.init(subject.params)
    worst, where = 0.0, ""
    for k in range(2):
        mean, begin = subject.gradients(k), subject.trajectory()[k]
        for factor in (0.5, 1.0, 1.5):
            grads = _compare.in_numpy(lambda g, factor=factor: factor * g, mean)
            params, state, updates = step(params, state, grads)
            if factor < 1.5 and any(np.any(u) for u in jax.tree.leaves(updates)):
                raise Broken("an update before the last micro-step is not zero")
        _, _, wanted = subject.step(begin.params, begin.state, mean)
        worst, where = max((worst, where), _compare.gap(updates, wanted))
    return _compare.require_small(worst, where, subject.tolerance)


def scan(subject: Subject) -> str:
    """`jax.lax.scan` over the steps equals the loop."""
    grads = [subject.gradients(k) for k in range(STEPS)]
    points = subject.trajectory()

    def body(carry, grads):
        params, state, updates = subject.step(carry[0], carry[1], grads)
        return (params, state), updates

    start = (subject.params, points[0].state)
    run = jax.jit(lambda start, grads: jax.lax.scan(body, start, grads))
    (_, state), updates = run(start, _stack(*grads))
    wanted = _stack(*[point.updates for point in points[1:]])
    worst, where = max(
        _compare.gap(updates, wanted), _compare.gap(state, points[-1].state)
    )
    return _compare.require_small(worst, where, subject.tolerance)


def vmap(subject: Subject) -> str:
    """`jax.vmap` over several sets of parameters equals the loop over them."""
    sets = [subject.params, _compare.in_numpy(lambda p: 2 * p + 1, subject.params)]

    def two_steps(params, grads):
        params, state, _ = subject.step(params, subject.tx.init(params), grads)
        return subject.step(params, state, grads)[2]

    grads = _stack(*[subject.gradients(k) for k in range(2)])
    got = jax.jit(jax.vmap(two_steps))(_stack(*sets), grads)
    wanted = []
    for k, p in enumerate(sets):
        p, state, _ = subject.step(p, subject.tx.init(p), subject.gradients(k))
        wanted.append(subject.step(p, state, subject.gradients(k))[2])
    worst, where = _compare.gap(got, _stack(*wanted))
    return _compare.require_small(worst, where, subject.tolerance)


def schedule_equals_constant(subject: Subject) -> str:
    """A schedule that stays put gives the steps and the state of its constant."""
    points = subject.once(_scheduled)([_rate(subject)] * STEPS)
    wanted = subject.trajectory()
    difference = _compare.layout_difference(wanted[0].state, points[0].state)
    if difference:
        raise Broken(f"constant and schedule have other states: {difference}")
    worst, where = _compare.gap(
        [point.updates for point in points[1:]], [point.updates for point in wanted[1:]]
    )
    return _compare.require_small(worst, where, subject.tolerance)


def schedule_counts_from_zero(subject: Subject) -> str:
    """The t-th update uses the schedule at t, the number of updates before it."""
    rate, run = _rate(subject), subject.once(_scheduled)
    pulse = run([rate if count == 1 else 0.0 for count in range(STEPS)])
    # What moves at rate zero has a rate of its own: a second chain for the rest.
    still = run([0.0] * STEPS)
    acted = [
        count
        for count in range(STEPS)
        if _compare.gap(pulse[count + 1].updates, still[count + 1].updates)[0] > 0
    ]
    if acted != [1]:
        raise Broken(f"a rate that is zero except at count 1 acted at counts {acted}")
    return ""


def learning_rate_is_readable(subject: Subject) -> str:
    """`inspection.hyperparams` reads the step and the rate from the state alone."""
    if subject.factory is not None and subject.learning_rate is None:
        raise NotApplicable("no learning_rate with a number in its arguments")
    groups = inspection.hyperparams(subject.trajectory()[-1].state)
    read = {
        name: (int(group["count"]), float(group["learning_rate"]))
        for name, group in groups.items()
        if "learning_rate" in group and "count" in group
    }
    if not read:
        raise Broken("no rate in the state; end with links.scale_by_learning_rate")
    rate = subject.learning_rate
    if rate is not None and not any(
        count == STEPS and np.isclose(read_rate, rate, rtol=1e-6)
        for count, read_rate in read.values()
    ):
        raise Broken(f"wanted count {STEPS} and rate {rate:.4g}, read {read}")
    return ", ".join(f"{name or 'all'}: {rate:.3g}" for name, (_, rate) in read.items())


def stacked_equals_separate(subject: Subject) -> str:
    """Layers in one scan-stacked leaf get the updates of layers on their own."""
    if not subject.own_params:
        raise NotApplicable(
            "needs parameters of its own; the chain may be tied to yours"
        )
    stacked = {"layers": subject.params["layers"]}
    layers = stacked["layers"]["kernel"].shape[0]

    def separate(tree: Any) -> Any:
        return {
            f"layers_{i}": _compare.in_numpy(lambda x, i=i: x[i], tree["layers"])
            for i in range(layers)
        }

    def two_updates(params, split):
        grads = [subject.gradients(k, like=stacked) for k in range(2)]
        state = subject.tx.init(params)
        for g in grads:
            params, state, updates = subject.step(params, state, split(g))
        return updates

    got = separate(two_updates(stacked, lambda tree: tree))
    worst, where = _compare.gap(got, two_updates(separate(stacked), separate))
    return _compare.require_small(worst, where, subject.tolerance)


def _stack(*trees: Any) -> Any:
    return _compare.in_numpy(lambda *leaves: np.stack(leaves), *trees)


def _rate(subject: Subject) -> float:
    if subject.factory is None:
        raise NotApplicable("the chain is already built; pass a Row or a factory")
    if "learning_rate" not in inspect.signature(subject.factory).parameters:
        raise NotApplicable(f"{subject.name} has no argument learning_rate")
    if subject.learning_rate is None:
        raise NotApplicable("its learning rate is a schedule already")
    return subject.learning_rate


def _scheduled(subject: Subject) -> Callable[[list[float]], list[Point]]:
    """Compiles one walk for every schedule: from rates by count to the trajectory."""

    def chain_of(rates: jax.Array) -> optax.GradientTransformationExtraArgs:
        tx = subject.build(learning_rate=lambda count: rates[count])
        return optax.with_extra_args_support(tx)

    step = jax.jit(lambda rates, *args: subject.step_of(chain_of(rates))(*args))

    def walk(rates: list[float]) -> list[Point]:
        table = jnp.asarray(rates)
        start = chain_of(table).init(subject.params)
        return subject.run(functools.partial(step, table), start)

    return walk


def _not_floats(defaults: dict[str, Any]) -> tuple[str, ...]:
    return tuple(k for k, v in defaults.items() if not isinstance(v, float))


def _every_other_leaf(params: Any) -> Any:
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([i % 2 == 0 for i in range(len(leaves))])


def _require_routed(subject: Subject, tx: Any, mask: Any, outside: Any) -> str:
    """Checks a chain that applies the subject to the leaves of a mask.

    The reference is the bare chain with zero gradients outside of the mask, so that
    norms over all leaves come out alike.
    """
    start, grads = subject.trajectory()[0], subject.gradients(0)
    inside = jax.tree.map(lambda m, g: g if m else np.zeros_like(g), mask, grads)
    _, _, alone = subject.step(start.params, start.state, inside)
    wanted = jax.tree.map(lambda m, a, g: a if m else outside(g), mask, alone, grads)
    state = tx.init(subject.params)
    _, _, updates = subject.step_of(tx)(subject.params, state, grads)
    worst, where = _compare.gap(updates, wanted)
    return _compare.require_small(worst, where, subject.tolerance)
