"""Which axes of the leaves of a Flax model make them matrices."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optlab.trees._matrices import MatrixView, checked
from optlab.trees._paths import path_string

# Last part of a path, or a part of it, that says what a leaf is. Names are those of
# Flax's linen and nnx layers and of the usual transformer codebases.
_VECTOR_NAMES = re.compile(r"bias|b|scale|gamma|beta|mean|var|offset")
_WEIGHT_NAMES = re.compile(r"kernel|weight|w\d*|lora_[ab]|.*(_kernel|_weight|_proj)")
_REST_PARTS = re.compile(
    r".*embed.*|(.*_)?tokens?|cls|wte|wpe|pos(itional)?_?(enc.*|emb.*)?"
    r"|(lm_|output_|classifier_)?head|logits|classifier"
    r"|.*norm(_?\d+)?|ln(_?\d+|_.*)?|(layer|batch|group|rms)_?norm.*|.*depthwise.*"
)
_QUERY_PARTS = re.compile(r"query|key|value|[qkv](_proj)?")
_OUT_PARTS = re.compile(r"out|o(_proj)?|out_proj")
_FUSED_PARTS = re.compile(r"(c_)?(attn|qkv|wqkv|query_key_value|qkv_proj|in_proj)")
_STACKED_PARTS = re.compile(r".*experts?(_.*)?|moe(_.*)?")


Views = Any
ViewRule = tuple[str, MatrixView | None]


def matrix_views(
    params: Any, *, rules: Sequence[ViewRule] = (), strict: bool = False
) -> Views:
    """Tells, for every leaf of a Flax model, which axes make it a matrix.

    The rules, first match wins, where `_` stands for a leading batch axis that
    `nn.scan`, `nnx.vmap` or a mixture of experts adds:

        given rules                             as given
        fewer than two axes                     rest
        bias, scale, norms (stacked ones too)   rest
        embeddings, tokens, positions, heads    rest
        depthwise convolutions                  rest
        query, key, value (d, heads, head_dim)  in d, out heads x head_dim
        attention out (heads, head_dim, d)      in heads x head_dim, out d
        fused qkv (d, 3, heads, head_dim)       in d, out the others
        (kh, kw, cin, cout), conv (k, cin, cout) in kh x kw x cin, out cout
        (in, out), (_, in, out), experts        in, out

    Args:
      params: Linen dictionary, FrozenDict, `nnx.State` or any tree of arrays, tracers
        or `jax.ShapeDtypeStruct`.
      rules: Pairs of a regular expression, searched in the path, and the view of the
        leaves it finds (None for the rest). Negative axes are allowed.
      strict: Raise on leaves whose role the name does not tell, on fused projections
        without a `split` and on one array in two places (tied weights).

    Returns:
      Tree of the structure of params with a `MatrixView` or None at each leaf.

    Raises:
      ValueError: In strict mode as above; if a view does not fit its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> params = {"embed": {"embedding": jnp.ones((9, 4))},
      ...           "up": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
      >>> trees.matrix_views(params)["up"]
      {'bias': None, 'kernel': MatrixView(reduction=(0,), output=(1,), split=None)}

    Source:
      Written for this library. Differs from Optax's rule (two axes or not): that
      sends embeddings and stacked biases to Muon, stacked and attention kernels away.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path_string(path): jnp.shape(leaf) for path, leaf in leaves}
    if strict:
        _refuse_tied(leaves)

    def view(key_path: tuple[Any, ...], leaf: Any) -> MatrixView | None:
        path = path_string(key_path)
        for pattern, given in rules:
            if re.search(pattern, path):
                who = f"trees.matrix_views: leaf {path!r}"
                return given and checked(who, jnp.shape(leaf), given)
        found, doubt = _guess(path, shapes)
        if strict and doubt:
            raise ValueError(
                f"trees.matrix_views: leaf {path!r} of shape {jnp.shape(leaf)}:"
                f" {doubt}. Say what it is: rules=[(pattern, MatrixView(...) or None)]"
            )
        return found

    return jax.tree_util.tree_map_with_path(view, params)


def views_by_path(tree: Any, views: Any) -> dict[str, MatrixView]:
    """Looks up how the leaves of a tree are read.

    Args:
      tree: Tree of arrays or `jax.ShapeDtypeStruct`.
      views: Tree of views, or the function that finds them in the tree. It may have
        more leaves than the tree: inside a partition some are hidden.

    Returns:
      The views by path; leaves that are no matrix are left out.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> trees.views_by_path(tree, trees.matrix_views)
      {'up/kernel': MatrixView(reduction=(0,), output=(1,), split=None)}
    """
    views = views(tree) if callable(views) else views
    return {
        path_string(path): view
        for path, view in jax.tree_util.tree_leaves_with_path(views)
    }


def _refuse_tied(leaves: list[tuple[Any, Any]]) -> None:
    seen: dict[int, str] = {}
    for key_path, leaf in leaves:
        path = path_string(key_path)
        other = seen.setdefault(id(leaf), path)
        if other != path and jnp.ndim(leaf) >= 2:
            raise ValueError(
                f"trees.matrix_views: leaves {other!r} and {path!r} are one array. Tied"
                " weights must be one leaf, or they get two different updates."
            )


def _guess(path: str, shapes: dict[str, tuple]) -> tuple[MatrixView | None, str]:
    """Returns the view that a Flax name and shape suggest, and any doubt about it."""
    shape, parts = shapes[path], path.lower().split("/")
    name, above = parts[-1], parts[-2] if len(parts) > 1 else ""
    rank = len(shape)
    rest = _VECTOR_NAMES.fullmatch(name) or any(map(_REST_PARTS.fullmatch, parts))
    if rank < 2 or rest:
        return None, ""
    siblings = path.rsplit("/", 2)[0] if len(parts) > 2 else None

    def sibling(pattern: re.Pattern) -> tuple | None:
        for other, other_shape in shapes.items():
            module, _, leaf = other.rpartition("/")
            room, _, part = module.rpartition("/")
            same_room = (room or None) == siblings
            if same_room and leaf.lower() == name and pattern.fullmatch(part.lower()):
                return other_shape
        return None

    if rank >= 3 and _QUERY_PARTS.fullmatch(above):
        out = sibling(_OUT_PARTS)
        if rank >= 4 or out is None or out == (*shape[1:], out[-1]):
            batch = rank - 3
            doubt = "" if rank >= 4 or out else "a stack of (in, out), or heads?"
            return MatrixView((batch,), (batch + 1, batch + 2)), doubt
    elif rank >= 3 and _OUT_PARTS.fullmatch(above):
        query = sibling(_QUERY_PARTS)
        if query is not None and shape[:-1] == (*query[: rank - 3], *query[rank - 2 :]):
            return MatrixView((rank - 3, rank - 2), (rank - 1,)), ""
    doubt = "" if _WEIGHT_NAMES.fullmatch(name) else "the name tells no role"
    if _FUSED_PARTS.fullmatch(above):
        doubt = "a fused projection is orthogonalised whole unless the view splits it"
        if rank >= 4:
            return MatrixView((rank - 4,), (rank - 3, rank - 2, rank - 1)), doubt
    elif any(map(_STACKED_PARTS.fullmatch, parts)):
        pass
    elif rank >= 4 or (rank == 3 and "conv" in above):
        doubt = "" if "conv" in above and rank < 5 else "a convolution, or a stack?"
        return MatrixView(tuple(range(rank - 1)), (rank - 1,)), doubt
    elif rank == 3 and re.search("general|einsum", above):
        doubt = "which axes does the layer sum over?"
    return MatrixView((rank - 2,), (rank - 1,)), doubt
