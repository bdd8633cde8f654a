"""Laws by name, and fitted laws as JSON."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optlab.laws import _annealing_law, _fitted, _law, _multi_power_law

LAWS: Mapping[str, Callable[..., _law.Law]] = {
    "progress": _annealing_law.progress_law,
    "annealing": _annealing_law.annealing_law,
    "multi_power": _multi_power_law.multi_power_law,
    "power": _annealing_law.power_law,
}

FORMAT = "optlab-law-1"


def to_json(fitted: _fitted.Fitted) -> dict[str, Any]:
    """Turns a fitted law into what JSON can hold.

    Args:
      fitted: The fitted law, of one of `laws.LAWS`.

    Returns:
      A dictionary of numbers, texts and lists.

    Raises:
      ValueError: If the law is not one of `laws.LAWS`.

    Example:
      >>> import numpy as np
      >>> from optlab import laws
      >>> step, rate = np.arange(10, 401, 10), np.full(400, 0.1)
      >>> curve = laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate)
      >>> saved = laws.to_json(laws.fit(curve, laws.power_law()))
      >>> saved["law"], round(laws.from_json(saved).params["L0"], 3)
      ('power', 2.0)

    Source:
      Written for this library.
    """
    if fitted.law.name not in LAWS:
        raise ValueError(
            f"laws.to_json: '{fitted.law.name}' is not one of {', '.join(LAWS)}"
        )
    return {
        "format": FORMAT,
        "law": fitted.law.name,
        "settings": dict(fitted.law.settings),
        "params": dict(fitted.params),
        "intervals": {name: list(ends) for name, ends in fitted.intervals.items()},
        "warnings": list(fitted.warnings),
        "peak": fitted.peak,
        "steps": fitted.steps,
        "scatter": fitted.scatter,
        "covariance": fitted.covariance.tolist(),
        "objective": fitted.objective,
        "facts": dict(fitted.facts),
    }


def from_json(saved: Any) -> _fitted.Fitted:
    """Reads what `to_json` wrote.

    Args:
      saved: The dictionary.

    Returns:
      The fitted law.

    Raises:
      ValueError: If it is not such a dictionary; the message says what is missing.
    """
    who = "laws.from_json"
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        raise ValueError(f"{who}: this is no fitted law (no format '{FORMAT}')")
    try:
        law = LAWS[saved["law"]](**saved["settings"])
        params = {name: float(saved["params"][name]) for name in law.names}
        intervals = {
            name: (float(low), float(high))
            for name, (low, high) in saved["intervals"].items()
        }
        size = len(law.names)
        fitted = _fitted.Fitted(
            law=law,
            params=params,
            intervals=intervals,
            warnings=tuple(map(str, saved["warnings"])),
            peak=float(saved["peak"]),
            steps=int(saved["steps"]),
            scatter=float(saved["scatter"]),
            covariance=np.asarray(saved["covariance"], np.float64).reshape(size, size),
            objective=float(saved["objective"]),
            facts=dict(saved["facts"]),
        )
    except KeyError as error:
        raise ValueError(f"{who}: {error} is missing or unknown") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who}: {error}") from error
    numbers = (*params.values(), fitted.peak, fitted.scatter)
    if not all(map(math.isfinite, numbers)) or fitted.peak <= 0 or fitted.steps < 1:
        raise ValueError(
            f"{who}: a number is not finite, or the peak or steps not above 0"
        )
    return fitted
