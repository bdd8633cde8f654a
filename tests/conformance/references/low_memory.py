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


REFERENCES = {"scale": scale}
