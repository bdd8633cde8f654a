"""Finding what a link of a chain has kept."""

from typing import Any

import jax

from optlab import trees


def only_link(who: str, link: str, kind: type, state: Any) -> Any:
    """Finds the one state of a kind in that of a chain.

    Raises:
      ValueError: If there is none, or several; `who` looks for what `link` keeps.
    """

    def is_link(node: Any) -> bool:
        return isinstance(node, kind)

    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_link)
    found = {trees.path_string(path): node for path, node in nodes if is_link(node)}
    if len(found) != 1:
        raise ValueError(
            f"{who}: the state has {len(found)} links {link}"
            + (f", at {sorted(found)}; pass the part with one" if found else "")
        )
    return found.popitem()[1]
