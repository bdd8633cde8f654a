"""Promises about resuming from a checkpoint, bit for bit."""

import importlib
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.testing import _compare
from optlab.testing._report import Broken, NotApplicable
from optlab.testing._subject import STEPS, Subject


def resume_orbax(subject: Subject) -> str:
    """A run restored by orbax goes on with the same bits."""
    checkpoint = _optional("orbax.checkpoint", "orbax-checkpoint")

    def round_trip(tree: Any) -> Any:
        # Orbax refuses arrays without entries: one entry stands in for none.
        full = jax.tree.map(lambda x: x if x.size else jnp.zeros(1, x.dtype), tree)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "checkpoint"
            with checkpoint.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, full)
                checkpointer.wait_until_finished()
                restored = checkpointer.restore(path, full)
        # By way of NumPy: what Orbax restores is committed to its device, for which JAX
        # would compile the same step once more.
        return _compare.in_numpy(lambda x, old: x if old.size else old, restored, tree)

    return _require_resume(subject, round_trip)


def resume_msgpack(subject: Subject) -> str:
    """A run restored by Flax's msgpack goes on with the same bits."""
    serialization = _optional("flax.serialization", "flax")
    try:
        serialization.to_bytes(subject.params)
    except TypeError as error:
        # An nnx.State, for one: that is not the chain's doing.
        raise NotApplicable(f"Flax cannot save these parameters: {error}") from error

    def round_trip(tree: Any) -> Any:
        data = serialization.to_bytes(tree)
        template = jax.tree.map(jnp.zeros_like, tree)
        return serialization.from_bytes(template, data)

    return _require_resume(subject, round_trip)


def _optional(module: str, package: str) -> Any:
    """Imports a package that the library itself does without."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotApplicable(f"needs {package}") from error


def _require_resume(subject: Subject, round_trip: Callable[[Any], Any]) -> str:
    points, half = subject.trajectory(), STEPS // 2
    saved = (points[half].params, points[half].state)
    words = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, saved)
    restored = jax.tree.map(
        lambda x, old: (
            jax.random.wrap_key_data(x, impl=jax.random.key_impl(old))
            if _is_key(old)
            else x
        ),
        round_trip(words),
        saved,
    )
    difference = _compare.layout_difference(saved, restored)
    if difference:
        raise Broken(f"restored otherwise than saved: {difference}")
    params, state = restored
    for k in range(half, STEPS):
        params, state, _ = subject.step(params, state, subject.gradients(k))
    wanted = (points[-1].params, points[-1].state)
    for (path, got), old in zip(
        _compare.leaves((params, state)).items(), jax.tree.leaves(wanted), strict=True
    ):
        if not np.array_equal(_compare.wide(got), _compare.wide(old), equal_nan=True):
            raise Broken(f"'{path}' has other bits after the resume")
    return f"{STEPS - half} steps after the restore, same bits"


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
