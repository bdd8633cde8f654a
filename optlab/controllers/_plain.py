"""Plain values of controllers: counts, and states as JSON has them."""

from collections.abc import Mapping
from typing import Any


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the fields of a state of what `_asdict` gave, be it by way of JSON."""
    return {name: _frozen(value) for name, value in values.items()}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def require_count(who: str, name: str, value: Any, least: int = 1) -> None:
    """Raises unless an argument is a whole number of at least so many."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{who}: {name} counts and must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{who}: {name} must be at least {least}, got {value}")
