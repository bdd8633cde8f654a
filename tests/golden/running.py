"""Runs one case: finds its adapter, lets it build optlab's counterpart, compares."""

import pathlib

import jax

from tests.golden import adapters, comparing, reading, settings


class NoAdapterError(Exception):
    """Nothing in optlab is known to be the counterpart of this case's class."""


def run(stem: pathlib.Path) -> list[comparing.Measurement]:
    """Compares optlab with one case.

    64-bit types are on inside this call only, and only if the case is not a float32
    one.

    Args:
      stem: Path of the case without a suffix.

    Returns:
      What was measured; whoever calls decides what to make of an error that is too
      large.

    Raises:
      NoAdapterError: The optimizer is not in optlab yet.
      settings.NotInOptlabError: It is, but not this feature of it.
      settings.UnknownSettingError: The adapter cannot say what a hyperparameter means.
      reading.FaultyCaseError: The files cannot be used.
    """
    case = reading.read(stem)
    adapter = adapters.ADAPTERS.get(case.meta.get("reference_class", ""))
    if adapter is None:
        raise NoAdapterError(f"no adapter yet for {case.meta.get('reference_class')}")
    values = settings.Settings(adapter.__name__, case.hyperparameters)
    with jax.enable_x64(case.meta.get("dtype") != "float32"):
        comparison = adapter(values, case)
        values.finish()
        return comparison.measure(case)
