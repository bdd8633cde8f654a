"""Runs of a transformation over a fixed list of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def gradients(shape, steps=4, seed=0, dtype=np.float32):
    """Normal gradients, one a step, of no particular scale."""
    rng = np.random.default_rng(seed)
    return [(3 * rng.normal(size=shape)).astype(dtype) for _ in range(steps)]


def parameters(tx, params, grads, state=None, compiled=False, extra=None):
    """Returns the parameters after each gradient and the last state.

    Not compiled unless asked: eager operations on few shapes are compiled once for all
    tests. `extra` makes what else an update takes, from parameters and gradient.
    """
    state, points = tx.init(params) if state is None else state, []
    # A function is no argument of a compiled one.
    static = ("loss_fn", "value_fn")
    update = jax.jit(tx.update, static_argnames=static) if compiled else tx.update
    for gradient in grads:
        gradient = jax.tree.map(jnp.asarray, gradient)
        more = extra(params, gradient) if extra else {}
        updates, state = update(gradient, state, params, **more)
        params = optax.apply_updates(params, updates)
        points.append(params)
    return points, state


def last_update(tx, grads):
    """Returns the update of the last gradient, one leaf, without parameters."""
    state, updates = tx.init(jnp.asarray(grads[0])), None
    for gradient in grads:
        updates, state = tx.update(jnp.asarray(gradient), state)
    return np.asarray(updates)


def first_update(tx, grads, params, leaf):
    """Returns the first update of a leaf of a dictionary."""
    return np.asarray(tx.update(grads, tx.init(params), params)[0][leaf])


def rates(state):
    """Returns every learning rate found in a state."""
    return [
        float(value)
        for path, value in jax.tree_util.tree_leaves_with_path(state)
        if jax.tree_util.keystr(path).endswith(".learning_rate")
    ]


def state_bytes(tx, params):
    """Counts the bytes of a first state but for single numbers; allocates nothing."""
    arrays = [x for x in jax.tree.leaves(jax.eval_shape(tx.init, params)) if x.ndim]
    return sum(x.size * x.dtype.itemsize for x in arrays)


# A tree of two leaves, at ones.
TREE = {"a": (4, 6), "b": (5,)}
START = {name: np.ones(shape, np.float32) for name, shape in TREE.items()}
ZEROS = jax.tree.map(np.zeros_like, START)


def tree_gradients(steps, seed=0):
    """Normal gradients of that tree, one a step."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in TREE.items()
        }
        for _ in range(steps)
    ]
