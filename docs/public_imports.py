"""Tells the reference's reader of sources that `import x as x` makes x public.

A room re-exports its names in that way, as typed packages do; without this only names
in an `__all__` would be shown.
"""

import ast
from typing import Any

import griffe


class PublicImports(griffe.Extension):
    """Marks names that a module imports under their own name as public."""

    def on_module_members(
        self, *, node: Any, mod: griffe.Module, **kwargs: Any
    ) -> None:
        """Reads the imports of one module; called by griffe for each."""
        del kwargs
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if alias.asname == alias.name and alias.name in mod.members:
                        mod.members[alias.name].public = True
