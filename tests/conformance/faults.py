"""A sound chain, and faulty ones: each has one thing wrong that happens in practice.

All are factories with the arguments of `sound`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

from optlab import links, optimizers, trees

RATE, B1, B2, EPS = 0.01, 0.9, 0.999, 1e-8


def sound(learning_rate=RATE, *, b1=B1, b2=B2, eps=EPS):
    return optax.chain(
        links.in_float32(optax.scale_by_adam(b1, b2, eps)),
        links.scale_by_learning_rate(learning_rate),
    )


def like_sound(build):
    """Gives a factory of (**arguments) the signature of the sound one."""
    return functools.update_wrapper(build, sound, assigned=(), updated=())


def planted(init=None, update=None):
    """Puts a fault around the sound chain, which each function gets first."""

    def build(**arguments):
        tx = sound(**arguments)

        def new_init(params):
            return init(tx, params) if init else tx.init(params)

        def new_update(updates, state, params=None, **extra):
            step = functools.partial(update, tx) if update else tx.update
            return step(updates, state, params)

        return optax.GradientTransformationExtraArgs(new_init, new_update)

    return like_sound(build)


def beside(start, advance):
    """Keeps a second state beside the sound one: start() and advance(state)."""

    def update(tx, updates, state, params):
        updates, inner = tx.update(updates, state[0], params)
        return updates, (inner, advance(state[1]))

    return planted(lambda tx, params: (tx.init(params), start()), update)


def after(change):
    """Changes the updates that leave the sound chain."""

    def update(tx, updates, state, params):
        updates, state = tx.update(updates, state, params)
        return change(updates), state

    return planted(update=update)


def each(rule):
    """Scales each gradient by a rule of its own, with the library's rate behind it."""

    def build(learning_rate=RATE, **_):
        scale = optax.stateless(lambda updates, _: jax.tree.map(rule, updates))
        return optax.chain(scale, links.scale_by_learning_rate(learning_rate))

    return like_sound(build)


# What only numbers show.

wrong_sign = after(lambda updates: jax.tree.map(jnp.negative, updates))


@like_sound
def dropped_bias_correction(learning_rate=RATE, *, b1=B1, b2=B2, eps=EPS):
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(updates, state, params=None, **extra):
        # At the largest count the corrections are 1.
        late = state._replace(count=jnp.full_like(state.count, 2**31 - 1))
        updates, after = adam.update(updates, late, params)
        return updates, after._replace(count=state.count + 1)

    core = optax.GradientTransformationExtraArgs(adam.init, update)
    return optax.chain(
        links.in_float32(core), links.scale_by_learning_rate(learning_rate)
    )


@like_sound
def ignores_batch_axes(learning_rate=RATE, **_):
    flat = trees.MatrixView(reduction=(0, 1), output=(2,))
    views = functools.partial(trees.matrix_views, rules=[("layers/kernel", flat)])
    return optimizers.muon(learning_rate, rest=optax.sgd(0.1), views=views)


# Steps and schedules.


@like_sound
def schedule_read_one_step_late(learning_rate=RATE, **arguments):
    def late(count):
        return learning_rate(count + 1)

    return sound(late if callable(learning_rate) else learning_rate, **arguments)


def _stale(tx, updates, state, params):
    updates, (adam, rate) = tx.update(updates, state, params)
    return updates, (adam, rate._replace(count=state[1].count))


stale_count = planted(update=_stale)


def _wrapping(tx, updates, state, params):
    updates, (adam, rate) = tx.update(updates, state, params)
    return updates, (adam._replace(count=state[0].count + 1), rate)


counter_wraps_round = planted(update=_wrapping)


@like_sound
def schedule_has_a_state_of_its_own(learning_rate=RATE, **arguments):
    adam = links.in_float32(optax.scale_by_adam(**arguments))
    return optax.chain(adam, optax.scale_by_learning_rate(learning_rate))


# Buffers.


def _twice(tx, params):
    adam, rate = tx.init(params)
    return adam._replace(nu=adam.mu), rate


def _params_kept(tx, params):
    adam, rate = tx.init(params)
    return adam._replace(mu=params), rate


def _placed_anywhere(tx, params):
    zeros = functools.partial(jax.tree.map, lambda p: jnp.zeros(p.shape, jnp.float32))
    adam, rate = tx.init(params)
    return adam._replace(mu=zeros(params), nu=zeros(params)), rate


one_buffer_twice = planted(_twice)
parameters_as_state = planted(_params_kept)
state_not_placed_like_parameters = planted(_placed_anywhere)


def _gathered(u):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return u
    if AxisType.Explicit in mesh.axis_types:
        return jax.reshard(u, PartitionSpec())
    return jax.lax.with_sharding_constraint(u, PartitionSpec())


gathers_the_update = after(lambda updates: jax.tree.map(_gathered, updates))


# Layout and precision.


@like_sound
def state_in_half_precision(learning_rate=RATE, **arguments):
    adam = optax.scale_by_adam(**arguments)
    return optax.chain(adam, links.scale_by_learning_rate(learning_rate))


@like_sound
def hyperparameters_cast_to_parameters(learning_rate=RATE, *, b1=B1, b2=B2, eps=EPS):
    def update(updates, state, params=None, **extra):
        dtype = jax.tree.leaves(params)[0].dtype
        rounded = [np.asarray(b).astype(dtype).astype(np.float32) for b in (b1, b2)]
        tx = sound(learning_rate, b1=rounded[0], b2=rounded[1], eps=eps)
        return tx.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(sound().init, update)


update_in_float32 = after(
    lambda updates: jax.tree.map(lambda u: u.astype(jnp.float32), updates)
)
dtype_of_the_state_drifts = beside(
    lambda: jnp.zeros((), jnp.int32), lambda count: count + 1.0
)
state_grows = beside(lambda: jnp.ones(1), lambda history: jnp.append(history, 1.0))
setting_in_the_state = beside(lambda: jnp.asarray([3.4, -4.8, 2.0]), lambda x: x)


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["t"])
class StepInTheTree:
    def __init__(self, t):
        self.t = t


recompiles_each_step = beside(
    lambda: StepInTheTree(0), lambda step: StepInTheTree(step.t + 1)
)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=[])
class UnknownToFlax:
    def __init__(self, x):
        self.x = x


state_that_flax_cannot_save = beside(
    lambda: UnknownToFlax(jnp.zeros(())), lambda state: UnknownToFlax(state.x + 1)
)


# Company.


@like_sound
def refuses_extra_arguments(**arguments):
    tx = optax.with_extra_args_support(sound(**arguments))
    return optax.GradientTransformation(
        tx.init, lambda updates, state, params=None: tx.update(updates, state, params)
    )


@like_sound
def branches_on_a_hyperparameter(learning_rate=RATE, *, b1=B1, b2=B2, eps=EPS):
    return sound(learning_rate, b1=b1 if b1 > 0 else 0.0, b2=b2, eps=eps)


def _read(tx, params):
    if any(float(jnp.sum(p)) == 42.0 for p in jax.tree.leaves(params)):
        raise ValueError("unlucky parameters")
    return tx.init(params)


def _first_leaf(tx, params):
    del jax.tree.leaves(params)[0]
    return tx.init(params)


init_reads_values = planted(_read)
init_needs_a_leaf = planted(_first_leaf)


def _by_position(updates):
    leaves, tree = jax.tree.flatten(updates)
    return tree.unflatten([(i + 1.0) * u for i, u in enumerate(leaves)])


scales_by_position = after(_by_position)


@like_sound
def counts_calls_on_the_host(**arguments):
    calls = []

    def count(u):
        calls.append(1)
        return np.asarray(u) * np.asarray(len(calls), u.dtype)

    def on_host(u):
        return jax.pure_callback(count, jax.ShapeDtypeStruct(u.shape, u.dtype), u)

    build = after(lambda updates: jax.tree.map(on_host, updates))
    return build(**arguments)


# Hostile gradients.

nan_on_zero_gradient = each(lambda g: g / jnp.max(jnp.abs(g), initial=0.0))
maximum_of_an_empty_leaf = each(lambda g: g / (1 + jnp.max(jnp.abs(g))))
square_overflows = each(lambda g: g * g / (jnp.abs(g) + 1))


@like_sound
def nan_spreads_through_a_norm(learning_rate=RATE, **_):
    norm = optax.stateless(
        lambda updates, _: optax.tree.scale(1 / (1 + optax.tree.norm(updates)), updates)
    )
    return optax.chain(norm, links.scale_by_learning_rate(learning_rate))
