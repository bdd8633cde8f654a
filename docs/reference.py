"""Tells the reference's reader of sources about two habits of this house."""

import ast
import re
from typing import Any

import griffe

# Paragraphs that begin with a prompt, flush with the docstring.
_BARE_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class PublicImports(griffe.Extension):
    """`import x as x` makes x public, as in typed packages."""

    def on_module_members(
        self, *, node: Any, mod: griffe.Module, **kwargs: Any
    ) -> None:
        """Marks what one module imports; called by griffe for each module."""
        del kwargs
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if alias.asname == alias.name and alias.name in mod.members:
                        mod.members[alias.name].public = True


class Examples(griffe.Extension):
    """Doctests are shown as code: in the section 'Example', and outside sections."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring; called by griffe for each object."""
        del kwargs
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
            text = _BARE_EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
            obj.docstring.value = text
