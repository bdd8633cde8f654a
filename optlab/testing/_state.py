"""Promises about the state: its layout, its precision and its buffers."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.testing import _compare
from optlab.testing._report import Broken
from optlab.testing._subject import Subject

HALF = (jnp.bfloat16, jnp.float16)
FLOATS = (jnp.float32, *HALF, jnp.float64)
LARGEST_COUNT = 2**31 - 1


def init_on_abstract_parameters(subject: Subject) -> str:
    """`init` needs shapes and dtypes only."""
    shapes = _compare.abstract(subject.params)
    wanted = subject.trajectory()[0].state
    for how, state in (
        ("init(ShapeDtypeStruct)", subject.tx.init(shapes)),
        ("jax.eval_shape(init)", jax.eval_shape(subject.tx.init, shapes)),
    ):
        difference = _compare.layout_difference(wanted, state)
        if difference:
            raise Broken(f"{how} gives another state than init(params): {difference}")
    return f"{len(jax.tree.leaves(wanted))} leaves"


def state_layout_is_stable(subject: Subject) -> str:
    """Tree, shapes and dtypes of the state never change, nor do they under a branch."""
    for path, leaf in _compare.leaves(subject.trajectory()[0].state).items():
        if not isinstance(leaf, jax.Array):
            raise Broken(f"'{path}' is a {type(leaf).__name__}, not a jax.Array")

    def branch(params, state, grads):
        return jax.lax.cond(
            optax.tree.norm(grads) > 0,
            lambda: subject.step(params, state, grads)[1],
            lambda: state,
        )

    for dtype in FLOATS:
        with jax.enable_x64(dtype == jnp.float64):
            params = _compare.cast(_compare.abstract(subject.params), dtype)
            state = jax.eval_shape(subject.tx.init, params)
            for step in (lambda *args: subject.step(*args)[1], branch):
                after = jax.eval_shape(step, params, state, params)
                difference = _compare.layout_difference(state, after)
                if difference:
                    raise Broken(f"{jnp.dtype(dtype).name} parameters: {difference}")
    return "float32, bfloat16, float16, float64; plain and under lax.cond"


def updates_keep_their_dtype(subject: Subject) -> str:
    """An update leaves with the dtype of the incoming update."""
    # (dtype of the parameters, dtype of the gradients, whether 64-bit types are on)
    cases = [(dtype, dtype, dtype == jnp.float64) for dtype in FLOATS]
    cases += [(jnp.float32, jnp.float32, True), (jnp.float32, jnp.bfloat16, False)]
    for param_dtype, grad_dtype, x64 in cases:
        with jax.enable_x64(x64):
            params = _compare.cast(_compare.abstract(subject.params), param_dtype)
            grads = _compare.cast(params, grad_dtype)
            state = jax.eval_shape(subject.tx.init, params)
            updates = jax.eval_shape(subject.step, params, state, grads)[2]
        difference = _compare.layout_difference(grads, updates)
        if difference:
            name = jnp.dtype(param_dtype).name
            raise Broken(f"gradients of {name} parameters: {difference}")
    return "float32, bfloat16, float16, float64, bfloat16 gradients of float32"


def accumulators_are_float32(subject: Subject) -> str:
    """The state of bfloat16 and float16 parameters is kept in float32 or wider."""
    for dtype in HALF:
        params = _compare.cast(_compare.abstract(subject.params), dtype)
        state = jax.eval_shape(subject.tx.init, params)
        for path, leaf in _compare.leaves(state).items():
            if leaf.dtype in HALF:
                raise Broken(f"'{path}' is {leaf.dtype}")
    return ""


def hyperparameters_keep_precision(subject: Subject) -> str:
    """With bfloat16 parameters the state is what float32 parameters give."""
    half = _compare.cast(subject.params, jnp.bfloat16)
    states, updates = [], []
    for params in (half, _compare.cast(half, jnp.float32)):
        state = subject.tx.init(params)
        for k in range(2):
            # Gradients that bfloat16 holds exactly, at parameters that stay put.
            grads = subject.gradients(k, like=half)
            grads = _compare.in_numpy(lambda g, p: g.astype(p.dtype), grads, params)
            _, state, update = subject.step(params, state, grads)
        states.append(state)
        updates.append(update)
    worst, where = _compare.gap(*states)
    seen = _compare.require_small(worst, f"state of bfloat16 parameters: {where}", 1e-4)
    # The update itself is rounded to the 8 bits of bfloat16.
    worst, where = _compare.gap(*updates)
    rounded = _compare.require_small(worst, f"bfloat16 update: {where}", 2.0**-7)
    return f"state: {seen}; update: {rounded}"


def donation(subject: Subject) -> str:
    """Parameters and state can be donated: the first state aliases nothing."""
    params = _compare.in_numpy(np.array, subject.params)
    state = subject.tx.init(params)
    owner: dict[int, str] = {}
    named = [(f"params/{k}", x) for k, x in _compare.leaves(params).items()]
    named += [(f"state/{k}", x) for k, x in _compare.leaves(state).items()]
    for path, leaf in named:
        if leaf.size == 0:
            continue
        address = leaf.unsafe_buffer_pointer()
        if address in owner:
            raise Broken(f"'{path}' shares its buffer with '{owner[address]}'")
        owner[address] = path
    step = jax.jit(subject.step, donate_argnums=(0, 1))
    for k in range(2):
        params, state, _ = step(params, state, subject.gradients(k))
    worst, where = _compare.gap(params, subject.trajectory()[2].params)
    return _compare.require_small(worst, where, subject.tolerance)


def no_recompilation(subject: Subject) -> str:
    """The second step and all later ones use the program of the first."""
    points = subject.trajectory()
    if subject.compilations() > 1:
        steps = f"{subject.compilations()} compilations in {len(points) - 1} steps"
        layouts = [_compare.layout_difference(points[0].state, p.state) for p in points]
        raise Broken(f"{steps}; {next(filter(None, layouts), 'same layout')}")
    return f"1 compilation, {len(points) - 1} steps"


def no_static_settings_in_state(subject: Subject) -> str:
    """Settings live in the chain: a restored state would silently keep old ones."""
    points = subject.trajectory()
    later = [_compare.leaves(point.state) for point in points[1:]]
    for path, first in _compare.leaves(points[0].state).items():
        names = path.split("/")
        # The rate in force, the values of a steered schedule, and what
        # optax.inject_hyperparams shows on purpose.
        if {"learning_rate", "settings", "hyperparams"} & {*names}:
            continue
        numbers = jnp.issubdtype(first.dtype, jnp.number)
        if not numbers or first.size == 0 or not np.any(_compare.wide(first)):
            continue
        if all(np.array_equal(first, state[path]) for state in later):
            raise Broken(
                f"'{path}' = {_compare.wide(first).ravel()[0]:.4g} never changed in"
                f" {len(later)} steps; keep settings out of the state"
            )
    return ""


def count_saturates(subject: Subject) -> str:
    """After 2**31 - 1 steps the counters stay there and updates stay finite."""
    point = subject.trajectory()[-1]

    def is_count(x: jax.Array) -> bool:
        return x.dtype == jnp.int32 and x.ndim == 0

    last = jnp.asarray(LARGEST_COUNT, jnp.int32)
    state = jax.tree.map(lambda x: last if is_count(x) else x, point.state)
    _, state, updates = subject.step(point.params, state, subject.gradients(0))
    for path, leaf in _compare.leaves(state).items():
        if leaf.dtype == jnp.int32 and np.any(np.asarray(leaf) < 0):
            raise Broken(f"'{path}' wrapped round to {leaf}; use optax.safe_increment")
    path = _compare.first_nonfinite(updates)
    if path:
        raise Broken(f"the update of '{path}' is not finite")
    return f"{sum(map(is_count, jax.tree.leaves(state)))} counters"


def tree_map_params(subject: Subject) -> str:
    """`optax.tree.map_params` finds the buffers that are shaped like parameters."""
    params, state = subject.params, subject.trajectory()[-1].state
    same = optax.tree.map_params(subject.tx, lambda x: x, state)
    worst, where = _compare.gap(same, state)
    _compare.require_small(worst, f"after mapping the identity: {where}", 0.0)
    buffers = itertools.count()

    def is_masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    def check_shape(x: Any, p: jax.Array) -> Any:
        if is_masked(x):
            return x
        next(buffers)
        if x.shape not in (p.shape, ()):
            raise Broken(f"takes a leaf of shape {x.shape} for one of shape {p.shape}")
        return x

    optax.tree.map_params(subject.tx, check_shape, state, params, is_leaf=is_masked)
    return f"{next(buffers)} buffers"
