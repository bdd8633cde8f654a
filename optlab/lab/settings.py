"""Settings of a chain: how text spells them and what a function takes."""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optlab import kernels, schedules

Value = int | float | bool | str | tuple[int, ...] | None

DTYPES = (None, "float64", "float32", "bfloat16", "float16")

_SHAPES: dict[str, Any] = {
    "linear": schedules.shapes.linear,
    "cosine": schedules.shapes.cosine,
    "one_minus_sqrt": schedules.shapes.one_minus_sqrt,
    "inverse_sqrt": schedules.shapes.inverse_sqrt(10.0),
    "rex": schedules.shapes.moebius(0.5),
    "uba": schedules.shapes.moebius(0.5, schedules.shapes.cosine),
    "megatron": schedules.shapes.exponential(2.0),
    "half_life": schedules.shapes.half_life(0.25),
}

# Shapes, and decays whose course depends on the rates that they connect.
_DECAYS = {
    **_SHAPES,
    "exponential": schedules.shapes.geometric,
    "inverse": schedules.shapes.harmonic,
}

# Arguments that are functions are given by these names.
FUNCTIONS: dict[str, dict[str, Any]] = {
    "orthogonalize": {
        table: functools.partial(kernels.newton_schulz, coefficients=table)
        for table in ("jordan", "youjiacheng", "polar_express", "turbo", "accurate")
    },
    "shape": _SHAPES,
    "decay": _DECAYS,
    "cooldown": _DECAYS,
    "annealing": _DECAYS,
}

# Arguments that a chain's text cannot give: trees, pairs, other parts of the chain.
NOT_IN_TEXT = ("bounds", "mask", "preconditioner", "rest", "total_steps")


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """Says that a name is unknown, and which names are near it.

    >>> unknown("schedule", "cosin", ["cosine", "linear"])
    "unknown schedule 'cosin'; did you mean 'cosine'?"
    >>> unknown("schedule", "x", ["cosine", "linear"])
    "unknown schedule 'x'; there are: cosine, linear"

    Args:
      kind: What the name should be the name of.
      name: The name.
      names: The names that there are.

    Returns:
      The message.
    """
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        guesses = " or ".join(repr(guess) for guess in near)
        return f"unknown {kind} {name!r}; did you mean {guesses}?"
    return f"unknown {kind} {name!r}; there are: {', '.join(names)}"


def spell(value: Value) -> str:
    """Spells a value as `read` reads it.

    >>> [spell(value) for value in (None, True, 0.02, "average", (300, 600))]
    ['none', 'true', '0.02', 'average', '300/600']

    Args:
      value: The value.

    Returns:
      Its text.
    """
    if isinstance(value, tuple):
        # One number ends in a slash, as in Python it would in a comma.
        return "/".join(map(str, value)) + "/" * (len(value) == 1)
    return value if isinstance(value, str) else str(value).lower()


def read(key: str, text: str) -> Value:
    """Reads a value.

    >>> [read("b1", text) for text in ("none", "true", "3", "3e-4", "average", "3/6")]
    [None, True, 3, 0.0003, 'average', (3, 6)]

    Args:
      key: Its key, for messages.
      text: Its text.

    Returns:
      The value.

    Raises:
      ValueError: If the text is no value.
    """
    if key == "path":
        return text
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise ValueError(f"{key}={text}: the value must be finite")
        return number
    if re.fullmatch(r"\d+/(\d+(/\d+)*)?", text):
        return tuple(int(number) for number in text.rstrip("/").split("/"))
    if not re.fullmatch(r"[A-Za-z_]\w*", text):
        raise ValueError(
            f"{key}={text}: a value is a number, true, false, none, a name or whole"
            " numbers with '/' between"
        )
    return text


def settable(function: Callable) -> dict[str, inspect.Parameter]:
    """Finds the parameters of a function that text can set.

    >>> list(settable(schedules.cosine))
    ['peak', 'warmup_steps', 'init_value', 'end_value']

    Args:
      function: The function.

    Returns:
      Its parameters, without trees and functions that have no names here.
    """
    return {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if key in FUNCTIONS
        or (
            key not in NOT_IN_TEXT
            and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            # What is required has no default: `empty`, a class.
            and (
                parameter.default is parameter.empty or not callable(parameter.default)
            )
        )
    }


def check(who: str, function: Callable, settings: Mapping[str, Value]) -> None:
    """Checks settings against the parameters of a function.

    Args:
      who: The function's name in text.
      function: The function.
      settings: The settings.

    Raises:
      ValueError: If a key is unknown or a value is of the wrong kind.
    """
    known = settable(function)
    for key, value in settings.items():
        if key not in known:
            raise ValueError(unknown(f"key of {who}", key, known))
        wanted = _wanted(key, value, known[key])
        if wanted:
            raise ValueError(f"{who}:{key}={spell(value)}: {wanted}")


def _wanted(key: str, value: Value, parameter: inspect.Parameter) -> str | None:
    """What is wanted instead of a value; None if it will do."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in FUNCTIONS:
        names = FUNCTIONS[key]
        return None if value in names else unknown("function", spell(value), names)
    if key.endswith("dtype"):
        names = ", ".join(map(spell, DTYPES))
        return None if value in DTYPES else f"a dtype is one of {names}"
    if key == "learning_rate":
        positive = isinstance(value, int | float) and number and value > 0
        return None if positive else "a rate is a number above 0"
    if isinstance(value, tuple):
        many = "Sequence" in str(parameter.annotation)
        return None if many else "one value is wanted"
    if "Sequence" in str(parameter.annotation) and parameter.default is parameter.empty:
        return "whole numbers are wanted, with '/' between, as in 300/600"
    if key.endswith("steps"):
        whole = isinstance(value, int) and number and value >= 0
        return None if whole else "steps are a whole number, 0 or more"
    if value is None and "None" in str(parameter.annotation):
        return None
    if isinstance(parameter.default, bool):
        return None if isinstance(value, bool) else "true or false is wanted"
    if isinstance(parameter.default, int | float):
        return None if number else "a number is wanted"
    if isinstance(parameter.default, str):
        # 'none' may be the name of a choice.
        return None if isinstance(value, str | None) else "a name is wanted"
    return None


def keywords(function: Callable, settings: Mapping[str, Value]) -> dict[str, Any]:
    """Turns settings into keyword arguments.

    Args:
      function: The function that takes them.
      settings: Settings that `check` let pass.

    Returns:
      The arguments: names of functions have become the functions.
    """
    parameters = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    for key, value in settings.items():
        if key in FUNCTIONS:
            arguments[key] = FUNCTIONS[key][spell(value)]
        elif value is None and isinstance(parameters[key].default, str):
            arguments[key] = "none"
        else:
            arguments[key] = value
    return arguments
