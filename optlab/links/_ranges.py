"""What numbers a hyperparameter may be, and what an update must be given."""

from typing import Any

import numpy as np

_NUMBERS = (float, int, np.floating)


def require_decays(who: str, **values: Any) -> None:
    """Raises unless the decays of averages, by name, are in [0, 1).

    Args:
      who: Name of the method, for the error.
      **values: The arguments. An array, which may be traced, is not looked at.

    Raises:
      ValueError: If one is out of range.

    Example:
      >>> from optlab import links
      >>> links.require_decays("scale_by_adan", b1=1.5)
      Traceback (most recent call last):
      ValueError: scale_by_adan: b1 must be at least 0 and below 1, got 1.5
    """
    for name, value in values.items():
        if isinstance(value, _NUMBERS) and not 0 <= value < 1:
            raise ValueError(
                f"{who}: {name} must be at least 0 and below 1, got {value}"
            )


def require_nonnegative(who: str, **values: Any) -> None:
    """Raises unless the arguments, by name, are 0 or more.

    Args:
      who: Name of the method, for the error.
      **values: The arguments. An array, which may be traced, is not looked at.

    Raises:
      ValueError: If one is below 0 or not a number.

    Example:
      >>> from optlab import links
      >>> links.require_nonnegative("scale_by_adan", eps=-1e-8)
      Traceback (most recent call last):
      ValueError: scale_by_adan: eps must be 0 or more, got -1e-08
    """
    for name, value in values.items():
        if isinstance(value, _NUMBERS) and not value >= 0:
            raise ValueError(f"{who}: {name} must be 0 or more, got {value}")


def require_positive(who: str, **values: Any) -> None:
    """Raises unless the arguments, by name, are above 0.

    Args:
      who: Name of the method, for the error.
      **values: The arguments. An array, which may be traced, is not looked at.

    Raises:
      ValueError: If one is 0, below it or not a number.

    Example:
      >>> from optlab import links
      >>> links.require_positive("prodigy", d0=0.0)
      Traceback (most recent call last):
      ValueError: prodigy: d0 must be above 0, got 0.0
    """
    for name, value in values.items():
        if isinstance(value, _NUMBERS) and not value > 0:
            raise ValueError(f"{who}: {name} must be above 0, got {value}")


def require_one_rate(who: str, learning_rate: Any) -> None:
    """Raises if the learning rate is a schedule for each group of leaves.

    Args:
      who: Name of a method whose numbers are made of all leaves together.
      learning_rate: A number, a scalar array or a schedule.

    Raises:
      ValueError: If it is one of `schedules.per_group`.

    Example:
      >>> from optlab import links, schedules
      >>> rate = schedules.per_group({"head": 0.1}, {"head": "head"})
      >>> links.require_one_rate("prodigy", rate)
      Traceback (most recent call last):
      ValueError: prodigy: learning_rate must be one for all leaves, not one a group
    """
    if callable(learning_rate) and hasattr(learning_rate, "labels"):
        raise ValueError(
            f"{who}: learning_rate must be one for all leaves, not one a group"
        )


def require_params(who: str, params: Any) -> None:
    """Raises unless an update was given the parameters.

    Args:
      who: Name of the method, for the error.
      params: What the update was given.

    Raises:
      TypeError: If they are None.

    Example:
      >>> from optlab import links
      >>> links.require_params("scale_by_adamp", None)
      Traceback (most recent call last):
      TypeError: scale_by_adamp: needs the parameters: update(..., params)
    """
    if params is None:
        raise TypeError(f"{who}: needs the parameters: update(..., params)")


def require_transformation(who: str, inner: Any) -> None:
    """Raises unless what a wrapper is put around is a transformation.

    Args:
      who: Name of the wrapper, for the error.
      inner: What it was given.

    Raises:
      TypeError: If it has no `init` and `update`.

    Example:
      >>> from optlab import links
      >>> links.require_transformation("mechanic", 1)
      Traceback (most recent call last):
      TypeError: mechanic: inner must be a transformation such as optax.sgd(1.0), got 1
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            f"{who}: inner must be a transformation such as optax.sgd(1.0), got"
            f" {inner!r}"
        )
