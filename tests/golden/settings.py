"""Hyperparameters of a case, each of which an adapter must take or declare idle."""

from collections.abc import Mapping
from typing import Any

_REQUIRED = object()


class UnknownSettingError(Exception):
    """A case has a hyperparameter, or a value of one, that the adapter cannot read."""


class NotInOptlabError(Exception):
    """The adapter knows what the case asks for; optlab cannot express it yet."""


class Settings:
    """Hands out hyperparameters by name and knows which ones nobody has asked for.

    Args:
      adapter: Who reads them, for messages.
      values: The hyperparameters in force.
    """

    def __init__(self, adapter: str, values: Mapping[str, Any]):
        self._adapter = adapter
        self._values = dict(values)

    def take(self, name: str, default: Any = _REQUIRED, *, among: Any = None) -> Any:
        """Returns a hyperparameter and ticks it off.

        Args:
          name: Its name in the reference's signature.
          default: The reference's default, for a case that records only what was
            passed.
          among: The values whose meaning the adapter knows; None for all.

        Returns:
          Its value.

        Raises:
          UnknownSettingError: It is absent and has no default, or has another value.
        """
        value = self._values.pop(name, default)
        if value is _REQUIRED:
            raise UnknownSettingError(
                f"adapter {self._adapter} needs '{name}' and has {sorted(self._values)}"
            )
        if among is not None and value not in among:
            raise UnknownSettingError(
                f"adapter {self._adapter} does not know {name}={value!r}; it knows "
                f"{list(among)}"
            )
        return value

    def group(self, name: str) -> "Settings":
        """Takes a hyperparameter that is itself a mapping of hyperparameters."""
        return Settings(f"{self._adapter}.{name}", self.take(name))

    def idle(self, name: str, *, because: str) -> None:
        """Ticks off a hyperparameter that cannot change the recorded numbers.

        Args:
          name: Its name; it may be absent.
          because: The reason, for the reader of the adapter.
        """
        if not because:
            raise ValueError(f"say why '{name}' has no effect")
        self._values.pop(name, None)

    def finish(self) -> None:
        """Raises UnknownSettingError if a hyperparameter has not been ticked off."""
        if self._values:
            raise UnknownSettingError(
                f"adapter {self._adapter} does not know "
                + ", ".join(f"{k}={v!r}" for k, v in self._values.items())
            )
