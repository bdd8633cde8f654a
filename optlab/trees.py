"""Tree -> tree: paths, labels, matrix views of parameters, stacks of equal shapes."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

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


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """How an array is read as a stack of matrices of shape (fan-in, fan-out).

    Attributes:
      reduction: Axes that a layer sums over; merged, in order, to the m rows.
      output: Axes that a layer puts out; merged, in order, to the n columns.
      split: Sizes into which the columns are cut, each piece a matrix of its own, for
        fused projections; None to leave them whole. All other axes are batch.
    """

    reduction: tuple[int, ...]
    output: tuple[int, ...]
    split: tuple[int, ...] | None = None


Views = Any
ViewRule = tuple[str, MatrixView | None]


def path_string(path: tuple[Any, ...]) -> str:
    """Writes a JAX key path as 'blocks/0/query/kernel'.

    Args:
      path: Key path, as from `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The keys joined by '/'; the `.value` that nnx puts under a variable is left out.

    Example:
      >>> import jax
      >>> from optlab import trees
      >>> leaves = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 1}]})
      >>> trees.path_string(leaves[0][0])
      'layers/0/kernel'
    """
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey):
        path = path[:-1] if path[-1].name in ("value", "raw_value") else path
    return jax.tree_util.keystr(path, simple=True, separator="/")


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
                return given and _checked(who, jnp.shape(leaf), given)
        found, doubt = _guess(path, shapes)
        if strict and doubt:
            raise ValueError(
                f"trees.matrix_views: leaf {path!r} of shape {jnp.shape(leaf)}:"
                f" {doubt}. Say what it is: rules=[(pattern, MatrixView(...) or None)]"
            )
        return found

    return jax.tree_util.tree_map_with_path(view, params)


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


def _checked(who: str, shape: tuple, view: MatrixView) -> MatrixView:
    """Makes axes non-negative and checks that the view fits the shape."""
    axes, rank = (*view.reduction, *view.output), len(shape)
    inside = all(-rank <= axis < rank for axis in axes)
    axes = tuple(axis % rank for axis in axes) if inside else axes
    twice = len(set(axes)) < len(axes)
    if not inside or twice or not view.reduction or not view.output:
        raise ValueError(
            f"{who} has shape {shape}, which the view {view} does not fit: each of"
            " reduction and output needs an axis, and no axis may be named twice."
        )
    reduction, output = axes[: len(view.reduction)], axes[len(view.reduction) :]
    columns = math.prod(shape[axis] for axis in output)
    pieces = view.split or (columns,)
    if sum(pieces) != columns or min(pieces) < min(1, columns):
        raise ValueError(
            f"{who} has shape {shape} and {columns} columns, which split={view.split}"
            " must cut into pieces of one or more."
        )
    return MatrixView(reduction, output, view.split)


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
            *head, part, leaf = other.split("/")
            same_room = ("/".join(head) or None) == siblings
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


def labels(views: Views) -> Any:
    """Labels each leaf 'matrix' or 'rest', for `optax.partition`.

    Args:
      views: Tree of views, as from `matrix_views`.

    Returns:
      Tree of the same structure with a string at each leaf.

    Example:
      >>> from optlab import trees
      >>> trees.labels({"kernel": trees.MatrixView((0,), (1,)), "bias": None})
      {'bias': 'rest', 'kernel': 'matrix'}
    """
    return jax.tree.map(
        lambda view: "rest" if view is None else "matrix", views, is_leaf=_is_view
    )


def _is_view(x: Any) -> bool:
    return x is None or isinstance(x, MatrixView)


def routing_table(params: Any, views: Views | None = None) -> str:
    """Writes how each leaf is routed: path, shape, group and matrix view.

    Args:
      params: Tree of arrays or `jax.ShapeDtypeStruct`.
      views: Tree of views; None means `matrix_views(params)`.

    Returns:
      A table, one line a leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> print(trees.routing_table({"up": {"kernel": jnp.ones((4, 8)),
      ...                                   "bias": jnp.ones(8)}}))
      path       shape   group   view
      up/bias    (8,)    rest    -
      up/kernel  (4, 8)  matrix  1 x (4, 8): in (0,), out (1,)
    """
    views = matrix_views(params) if views is None else views
    flat_views = jax.tree.leaves(views, is_leaf=_is_view)
    rows = [("path", "shape", "group", "view")]
    for (path, leaf), view in zip(
        jax.tree_util.tree_leaves_with_path(params), flat_views, strict=True
    ):
        shape = jnp.shape(leaf)
        if view is None:
            rows.append((path_string(path), str(shape), "rest", "-"))
            continue
        m = math.prod(shape[axis] for axis in view.reduction)
        n = math.prod(shape[axis] for axis in view.output)
        stack = math.prod(shape[axis] for axis in _batch_axes(view, len(shape)))
        text = f"{stack} x ({m}, {n}): in {view.reduction}, out {view.output}"
        text += f", split {view.split}" if view.split else ""
        rows.append((path_string(path), str(shape), "matrix", text))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows
    )


def _batch_axes(view: MatrixView, rank: int) -> tuple[int, ...]:
    named = (*view.reduction, *view.output)
    return tuple(axis for axis in range(rank) if axis not in named)


def to_matrices(x: jax.Array, view: MatrixView) -> tuple[jax.Array, ...]:
    """Reads an array as stacks of matrices, fan-in by fan-out.

    Args:
      x: Array of any shape that the view fits.
      view: Which axes are rows, which are columns, and how columns are split.

    Returns:
      One array of shape (k, m, n) for each piece of `view.split`, or one in all; k is
      the product of the batch axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> query = jnp.ones((6, 2, 3))  # (d, heads, head_dim)
      >>> trees.to_matrices(query, trees.MatrixView((0,), (1, 2)))[0].shape
      (1, 6, 6)
      >>> trees.to_matrices(query, trees.MatrixView((0,), (2,)))[0].shape  # per head
      (2, 6, 3)
    """
    view = _checked("trees.to_matrices: the array", x.shape, view)
    groups = (_batch_axes(view, x.ndim), view.reduction, view.output)
    order = tuple(axis for group in groups for axis in group)
    moved = jnp.transpose(x, order)
    sizes = [math.prod(x.shape[axis] for axis in group) for group in groups]
    sharding = jax.typeof(x).sharding
    names = [jax.tree.leaves([sharding.spec[axis] for axis in g]) for g in groups]
    stack = _reshaped(moved, sizes, sharding, [tuple(group) or None for group in names])
    if view.split is None:
        return (stack,)
    edges = [sum(view.split[:i]) for i in range(1, len(view.split))]
    return tuple(jnp.split(stack, edges, axis=-1))


def _reshaped(x: jax.Array, shape: Sequence[int], sharding: Any, spec: Any):
    """Reshapes; on a mesh with Explicit axes the placement has to be told."""
    if not any(spec):
        return x.reshape(shape)
    place = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.lax.reshape(x, shape, out_sharding=place)


def from_matrices(
    matrices: Sequence[jax.Array],
    view: MatrixView,
    shape: tuple[int, ...],
    sharding: Any = None,
) -> jax.Array:
    """Undoes `to_matrices`.

    Args:
      matrices: The stacks, shape (k, m, n) each.
      view: The view that made them.
      shape: Shape of the original array.
      sharding: On a mesh with Explicit axes, the original's `jax.typeof(x).sharding`.

    Returns:
      Array of that shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> x, view = jnp.arange(24.0).reshape(2, 3, 4), trees.MatrixView((1,), (0,))
      >>> stacks = trees.to_matrices(x, view)
      >>> bool((trees.from_matrices(stacks, view, x.shape) == x).all())
      True
    """
    stack = matrices[0] if view.split is None else jnp.concatenate(matrices, axis=-1)
    view = _checked("trees.from_matrices: the array", shape, view)
    order = (*_batch_axes(view, len(shape)), *view.reduction, *view.output)
    spec = [sharding.spec[axis] for axis in order] if sharding else []
    moved = _reshaped(stack, [shape[axis] for axis in order], sharding, spec)
    return jnp.transpose(moved, sorted(range(len(shape)), key=order.__getitem__))


def stack_by_shape(
    arrays: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], list[jax.Array]]]:
    """Joins stacks of equal matrices, so that a kernel runs once for each shape.

    The size of a compiled program then depends on the number of shapes, not of layers.

    Args:
      arrays: Arrays of shape (k_i, ...). Those that agree in all but the first axis, in
        dtype and, on a mesh with Explicit axes, in placement are joined; a stack whose
        first axis is sharded stays alone, for joining would move it between devices.

    Returns:
      The joined arrays, and the function that cuts such a list back into the order and
      the sizes of `arrays`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> parts = [jnp.ones((1, 2, 3)), jnp.ones((4, 2, 3)), jnp.ones((1, 5, 5))]
      >>> stacks, unstack = trees.stack_by_shape(parts)
      >>> [s.shape for s in stacks], [p.shape for p in unstack(stacks)]
      ([(5, 2, 3), (1, 5, 5)], [(1, 2, 3), (4, 2, 3), (1, 5, 5)])
    """
    groups: dict[Any, list[int]] = {}
    for index, x in enumerate(arrays):
        sharding = jax.typeof(x).sharding
        alone = index if any(sharding.spec[:1]) else None
        groups.setdefault((x.shape[1:], x.dtype, sharding, alone), []).append(index)
    members = list(groups.values())
    stacks = [jnp.concatenate([arrays[index] for index in group]) for group in members]
    sizes = [x.shape[0] for x in arrays]

    def unstack(joined: Sequence[jax.Array]) -> list[jax.Array]:
        parts: list[Any] = [None] * len(sizes)
        for stack, group in zip(joined, members, strict=True):
            start = 0
            for index in group:
                stop = start + sizes[index]
                parts[index] = stack if len(group) == 1 else stack[start:stop]
                start = stop
        return parts

    return stacks, unstack
