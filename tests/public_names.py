"""Walks the public surface of optlab: its modules and the names in them."""

import importlib
import pkgutil
import re
import types
from collections.abc import Iterator

import optlab


def modules(private: bool = False) -> list[types.ModuleType]:
    """Returns the modules below `optlab`, which itself is not in the list."""
    return list(_below(optlab, private))


def reachable(module: types.ModuleType) -> dict[str, object]:
    """Returns what of optlab's own can be reached as a public name of a module."""
    listed = getattr(module, "__all__", None) or [
        n for n in vars(module) if n[0] != "_"
    ]
    return {
        name: thing
        for name, thing in ((name, getattr(module, name)) for name in listed)
        if not isinstance(thing, types.ModuleType)
        and str(getattr(thing, "__module__", "")).startswith("optlab")
    }


def names(module: types.ModuleType) -> dict[str, object]:
    """Returns what a module offers: what it or a private module of it defines."""
    own = re.compile(re.escape(module.__name__) + r"(\._\w+)*")
    return {
        name: thing
        for name, thing in reachable(module).items()
        if own.fullmatch(str(thing.__module__))
    }


def paths() -> dict[str, object]:
    """Returns everything public by its dotted path, top level aside."""
    return {
        f"{module.__name__}.{name}": thing
        for module in modules()
        for name, thing in names(module).items()
    }


def _below(package: types.ModuleType, private: bool) -> Iterator[types.ModuleType]:
    for found in pkgutil.iter_modules(package.__path__):
        if private or not found.name.startswith("_"):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            yield module
            if found.ispkg:
                yield from _below(module, private)
