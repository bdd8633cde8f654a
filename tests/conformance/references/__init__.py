"""Float64 NumPy transcriptions of the rows: parameters after each gradient.

Each takes the arguments of its row and returns the `reference` of `testing.check`.
"""

import inspect

from tests.conformance.references import (
    adaptive,
    curvature,
    first_order,
    from_optax,
    geometry,
    kronecker,
    layerwise,
    links,
    low_memory,
    momentum,
    projected,
    sparse,
    spectral,
    tuning_free,
)

REFERENCES = {
    **first_order.REFERENCES,
    **adaptive.REFERENCES,
    **from_optax.REFERENCES,
    **layerwise.REFERENCES,
    **spectral.REFERENCES,
    **kronecker.REFERENCES,
    **curvature.REFERENCES,
    **low_memory.REFERENCES,
    **projected.REFERENCES,
    **sparse.REFERENCES,
    **momentum.REFERENCES,
    **geometry.REFERENCES,
    **links.REFERENCES,
    **tuning_free.REFERENCES,
}


def of_row(row):
    """Returns the reference of a catalogue row, with the row's own arguments."""
    signature = inspect.signature(row.build).parameters
    defaults = {name: parameter.default for name, parameter in signature.items()}
    return REFERENCES[row.name]({**defaults, **row.defaults})
