"""Comparisons of trees that say where and by how much two of them differ."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.testing._report import Broken


def leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, written 'a/b/c'."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in flat
    }


def wide(x: Any) -> np.ndarray:
    """Returns an array of numbers as float64, random keys as their words."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).astype(np.float64)


def layout_difference(before: Any, after: Any) -> str | None:
    """Names the first leaf whose shape, dtype or weak type changed, or None."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        return (
            f"the tree changed from {jax.tree.structure(before)} to"
            f" {jax.tree.structure(after)}"
        )
    for (path, old), new in zip(
        leaves(before).items(), jax.tree.leaves(after), strict=True
    ):
        if layout(old) != layout(new):
            return f"'{path}' changed from {layout(old)} to {layout(new)}"
    return None


def layout(x: Any) -> str:
    """Describes one leaf: dtype, shape, and whether its type is weak."""
    weak = " weakly typed" if getattr(x, "weak_type", False) else ""
    return f"{x.dtype}{list(x.shape)}{weak}"


def gap(got: Any, wanted: Any) -> tuple[float, str]:
    """Returns the largest relative difference of two trees, and the leaf it is in.

    Differences are relative to the largest entry of the wanted leaf. Two equal
    non-finite entries do not differ; a finite and a non-finite one differ infinitely.
    """
    worst, where = 0.0, ""
    for (path, g), w in zip(leaves(got).items(), jax.tree.leaves(wanted), strict=True):
        g, w = wide(g), wide(w)
        if g.shape != w.shape:
            raise Broken(f"'{path}' has shape {g.shape}, wanted {w.shape}")
        same = (g == w) | (np.isnan(g) & np.isnan(w))
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, np.abs(g - w))
        error = np.where(np.isnan(error), np.inf, error).max(initial=0.0)
        largest = np.abs(w, where=np.isfinite(w), out=np.zeros_like(w)).max(initial=0.0)
        # Entries below float32's normal range have no relative accuracy to lose.
        error = 0.0 if error == 0.0 else error / max(largest, 1e-37)
        if error > worst:
            worst, where = error, path
    return float(worst), where


def first_nonfinite(tree: Any) -> str | None:
    """Returns the path of the first leaf with a non-finite entry, or None."""
    for path, leaf in leaves(tree).items():
        if not np.isfinite(wide(leaf)).all():
            return path
    return None


def in_numpy(function: Callable[..., np.ndarray], *trees: Any) -> Any:
    """Maps a NumPy function over the leaves: nothing to compile for each new shape."""
    return jax.tree.map(
        lambda *x: jnp.asarray(function(*(np.asarray(leaf) for leaf in x))), *trees
    )


def cast(tree: Any, dtype: Any) -> Any:
    """Casts the floating leaves of a tree of arrays or abstract arrays."""

    def leaf(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, dtype)
        return in_numpy(lambda array: array.astype(dtype), x)

    return jax.tree.map(leaf, tree)


def abstract(tree: Any) -> Any:
    """Returns the tree with shapes and dtypes in place of its arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def require_small(worst: float, where: str, tolerance: float) -> str:
    """Returns the words for a difference that is small enough, or raises Broken."""
    if not worst <= tolerance:
        raise Broken(f"'{where}' differs by {worst:.1e} (allowed {tolerance:.0e})")
    return f"worst difference {worst:.0e}" if worst else "identical"
