"""Walks the public surface of optlab: its modules and the names in them."""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator

import optlab


def modules(private: bool = False) -> list[types.ModuleType]:
    """Returns the modules below `optlab`, which itself is not in the list."""
    return list(_below(optlab, private))


def names(module: types.ModuleType) -> dict[str, object]:
    """Returns what a module offers: `__all__`, or what it defines itself."""
    if hasattr(module, "__all__"):
        offered = {name: getattr(module, name) for name in module.__all__}
    else:
        offered = {
            name: thing
            for name, thing in vars(module).items()
            if not name.startswith("_")
            and getattr(thing, "__module__", None) == module.__name__
        }
    return {
        name: thing
        for name, thing in offered.items()
        if not isinstance(thing, types.ModuleType)
    }


def paths() -> dict[str, object]:
    """Returns everything public by its dotted path, top level aside."""
    return {
        f"{module.__name__}.{name}": thing
        for module in modules()
        for name, thing in names(module).items()
    }


def is_documented_kind(thing: object) -> bool:
    """Tells functions and classes, which carry docstrings, from plain data."""
    return inspect.isclass(thing) or inspect.isroutine(thing) or callable(thing)


def _below(package: types.ModuleType, private: bool) -> Iterator[types.ModuleType]:
    for found in pkgutil.iter_modules(package.__path__):
        if private or not found.name.startswith("_"):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            yield module
            if found.ispkg:
                yield from _below(module, private)
