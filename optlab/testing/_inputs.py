"""Promises about hostile gradients: zero, tiny, huge, half-precision, non-finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.testing import _compare
from optlab.testing._report import Broken, NotApplicable
from optlab.testing._subject import Subject

TINY, HUGE = 1e-30, 1e30
# What float16 can hold: its smallest positive number and nearly its largest.
HALF_TINY, HALF_HUGE = 6e-8, 6e4


def zero_gradient(subject: Subject) -> str:
    """A zero gradient at the start gives a finite update, at zero parameters zero."""
    zeros = _compare.in_numpy(np.zeros_like, subject.params)
    for where, params in (("", subject.params), ("zero parameters: ", zeros)):
        _, _, updates = subject.step(params, subject.tx.init(params), zeros)
        _require_finite(updates, where)
    # At zero parameters there is nothing to decay.
    for path, update in _compare.leaves(updates).items():
        if np.any(update):
            largest = np.abs(update).max()
            raise Broken(f"'{path}' moves by {largest:.1e} without a gradient")
    return ""


def tiny_and_huge_gradients(subject: Subject) -> str:
    """Gradients of 1e-30 and 1e30 in float32 give finite updates, now and later."""
    for factor in (TINY, HUGE):
        params, state = subject.params, subject.trajectory()[0].state
        for k, scale in enumerate((factor, 1.0)):
            grads = _compare.in_numpy(lambda g, s=scale: s * g, subject.gradients(k))
            _, state, updates = subject.step(params, state, grads)
            after = "" if scale == factor else "one step later: "
            _require_finite(updates, f"gradient of {factor:.0e}: {after}")
    return ""


def half_precision_extremes(subject: Subject) -> str:
    """The ends of float16 and bfloat16 give finite updates of those types."""
    for dtype, tiny, huge in (
        (jnp.bfloat16, TINY, HUGE),
        (jnp.float16, HALF_TINY, HALF_HUGE),
    ):
        params = _compare.cast(subject.params, dtype)
        for size in (tiny, huge):
            # Entries of one size and both signs: a normal draw would overflow.
            grads = _compare.in_numpy(
                lambda g, p, size=size: (size * np.sign(g)).astype(p.dtype),
                subject.gradients(0),
                params,
            )
            _, _, updates = subject.step(params, subject.tx.init(params), grads)
            name = jnp.dtype(dtype).name
            _require_finite(updates, f"{name} gradient of {size:.0e}: ")
    return ""


def nonfinite_stays_in_its_leaf(subject: Subject) -> str:
    """NaN or infinity in one leaf leaves the updates of all others as they were."""
    start = subject.trajectory()[0]
    grads, tree = jax.tree.flatten(subject.gradients(0))
    clean = jax.tree.leaves(subject.trajectory()[1].updates)
    paths = list(_compare.leaves(subject.params))
    outcomes = set()
    for i, grad in enumerate(grads):
        if grad.size == 0:
            continue
        for poison in (np.nan, np.inf):
            bad = np.array(grad)
            bad.flat[0] = poison
            poisoned = tree.unflatten([*grads[:i], bad, *grads[i + 1 :]])
            _, _, updates = subject.step(start.params, start.state, poisoned)
            got = jax.tree.leaves(updates)
            outcomes.add("finite" if np.isfinite(got[i]).all() else "not finite")
            for j, other in enumerate(got):
                if j != i and _compare.gap(other, clean[j])[0] > 0:
                    raise Broken(
                        f"{poison} in '{paths[i]}' changes the update of '{paths[j]}'"
                    )
    return f"the update of that leaf is {' or '.join(sorted(outcomes))}"


def empty_leaves(subject: Subject) -> str:
    """A leaf with a zero-size axis passes through and disturbs nothing."""
    empty = {k: p for k, p in _compare.leaves(subject.params).items() if p.size == 0}
    if not empty:
        raise NotApplicable("the parameters have no empty leaf")
    for point in subject.trajectory()[1:]:
        updates = _compare.leaves(point.updates)
        for path, param in empty.items():
            if updates[path].shape != param.shape:
                raise Broken(f"'{path}' {param.shape} got {updates[path].shape}")
        _require_finite(point.updates, "beside an empty leaf: ")
    return f"{len(empty)} empty"


def _require_finite(updates: Any, when: str) -> None:
    path = _compare.first_nonfinite(updates)
    if path:
        raise Broken(f"{when}the update of '{path}' is not finite")
