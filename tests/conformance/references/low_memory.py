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


def natural_galore(h):
    """The natural gradient by a dense solve; the bases are the kernel's."""

    def step(p, g, t, memory):
        bases, window, moments = memory or (None, [], None)
        left, right = bases or (
            np.asarray(h["basis"](x.astype(np.float32), h["rank"]), np.float64)
            for x in (g, g.T)
        )
        low = left.T @ g @ right
        window = [*window, low.ravel()][-h["history"] :]
        fisher = h["damping"] * np.eye(low.size) + sum(np.outer(r, r) for r in window)
        natural = np.linalg.solve(fisher, low.ravel()).reshape(low.shape)
        u, moments = adam(h, natural, t, moments)
        u = h["scale"] * correction(h, t) * left @ u @ right.T
        return p - h["learning_rate"] * u, ((left, right), window, moments)

    return each_matrix(step, spectral.vectors())


def frugal(h):
    """Fewer steps than `every`; the rows are drawn by JAX, as the optimizer does."""
    places = {}

    def drawn(shape):
        now = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[1]
        places[shape] = places.get(shape, -1) + 1
        for number in (*shape, places[shape]):
            now = jax.random.fold_in(now, number)
        rows = np.asarray(jax.random.permutation(now, shape[0]))
        return rows[: int(h["density"] * shape[0])]

    def step(p, g, t, memory):
        rows, (m, v) = memory or (drawn(p.shape), (0.0, 0.0))
        r, u = g[rows], np.sign(g)
        m, v = h["b1"] * m + (1 - h["b1"]) * r, h["b2"] * v + (1 - h["b2"]) * r * r
        root = np.sqrt(v / (1 - h["b2"] ** t)) + h["eps"]
        u[rows] = m / (1 - h["b1"] ** t) / root
        return p - h["learning_rate"] * u, (rows, (m, v))

    return each_matrix(step, spectral.vectors())


def limited(y, last):
    """At most 1.01 times the last norm, of which there is none at first."""
    norm = np.linalg.norm(y)
    factor = min(1.0, 1.01 * last / norm) if last else 1.0
    return y * factor, norm * factor


def ratio(step, low):
    lengths = [np.linalg.norm(x, axis=0, keepdims=True) for x in (step, low)]
    return lengths[0] / (lengths[1] + 1e-8)


def fira(h):
    def step(p, g, t, memory):
        basis, moments, last = memory or (singular_basis(g, h["rank"]), None, 0.0)
        x = g if wide(p) else g.T  # the short side first
        low = basis.T @ x
        a, moments = adam(h, low, t, moments)
        y, last = limited((x - h["scale"] * basis @ low) * ratio(a, low), last)
        u = correction(h, t) * (h["scale"] * basis @ a + y)
        u = u if wide(p) else u.T
        return p - h["learning_rate"] * u, (basis, moments, last)

    return each_matrix(step, spectral.vectors())


def apollo(h):
    """Fewer steps than `every`; drawn by JAX, as the optimizer does."""
    places = {}

    def drawn(m, n):
        places[m, n] = places.get((m, n), -1) + 1
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
        for number in (min(m, n), h["rank"], places[m, n]):
            key = jax.random.fold_in(key, number)
        normal = jax.random.normal(key, (min(m, n), h["rank"]), np.float32)
        return np.asarray(normal, np.float64) / np.sqrt(h["rank"])

    def step(p, g, t, memory):
        basis, moments, last = memory or (drawn(*p.shape), None, 0.0)
        x = g if wide(p) else g.T  # the short side first
        low = basis.T @ x
        a, moments = adam(h, low, t, moments)
        y, last = limited(x * ratio(a, low), last)
        u = correction(h, t) * np.sqrt(h["scale"]) * (y if wide(p) else y.T)
        return p - h["learning_rate"] * u, (basis, moments, last)

    return each_matrix(step, spectral.vectors())


REFERENCES = {
    "apollo": apollo,
    "fira": fira,
    "frugal": frugal,
    "galore": galore,
    "natural_galore": natural_galore,
    "scale": scale,
}
