"""Methods of little memory, in float64 NumPy."""

import jax
import numpy as np

from tests.conformance.references import spectral
from tests.conformance.references.walking import each_matrix


def scale(h):
    """The embedding, which is no matrix to the walk, is normalised with the rest."""

    def columns(g):
        return g / np.maximum(np.sqrt((g * g).mean(axis=0)), h["eps"])

    def step(p, g, t=None, memory=None):
        return p - h["learning_rate"] * columns(g), None

    def rest(params, grads):
        names = jax.tree.map_with_path(lambda path, _: path[-1].key, params)
        points, here = [], params
        for g, others in zip(grads, spectral.vectors()(params, grads), strict=True):
            here = jax.tree.map(
                lambda name, p, g, other: (
                    step(p, g)[0] if name == "embedding" else other
                ),
                *(names, here, g, others),
            )
            points.append(here)
        return points

    return each_matrix(step, rest)


def adam(h, r, t, memory):
    """Moments of r and their quotient, with eps before the correction of the bias."""
    m, v = (0.0, 0.0) if memory is None else memory
    m, v = h["b1"] * m + (1 - h["b1"]) * r, h["b2"] * v + (1 - h["b2"]) * r * r
    return m / (np.sqrt(v) + h["eps"]), (m, v)


def correction(h, t):
    return np.sqrt(1 - h["b2"] ** t) / (1 - h["b1"] ** t)


def galore(h):
    """Fewer steps than `every`: the directions of the first gradient."""

    def step(p, g, t, memory):
        basis, moments = memory or (singular_basis(g, h["rank"]), None)
        down = (lambda x: basis.T @ x) if wide(p) else (lambda x: x @ basis)
        up = (lambda x: basis @ x) if wide(p) else (lambda x: x @ basis.T)
        u, moments = adam(h, down(g), t, moments)
        u = h["scale"] * correction(h, t) * up(u)
        return p - h["learning_rate"] * u, (basis, moments)

    return each_matrix(step, spectral.vectors())


def wide(x):
    return x.shape[0] <= x.shape[1]


def singular_basis(g, rank):
    """The leading directions of the shorter side."""
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    return u[:, :rank] if wide(g) else vt[:rank].T


REFERENCES = {"galore": galore, "scale": scale}
