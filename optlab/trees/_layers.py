"""Kernels with their biases as one matrix a layer, and statistics of the layers."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab.trees import _matrices, _paths, _tensors, _views


@dataclasses.dataclass(frozen=True)
class Layer:
    """A kernel and its bias, read as k matrices of shape (m, n).

    Attributes:
      path: Path of the layer: that of its kernel without the last name, 'mlp/up' for
        'mlp/up/kernel'; of a matrix with another name than 'kernel' the whole path.
      kernel: Index of the kernel among the leaves of the tree.
      bias: Index of the bias, which is the last row of each matrix; None without one.
      view: How the kernel is read.
      shape: (k, m, n).
    """

    path: str
    kernel: int
    bias: int | None
    view: _matrices.MatrixView
    shape: tuple[int, int, int]


def layer_groups(tree: Any, views: Any) -> list[tuple[Layer, ...]]:
    """Finds the layers of a tree, grouped by the shape of their matrices.

    Args:
      tree: Tree of arrays or `jax.ShapeDtypeStruct`.
      views: Tree of views, or the function that finds them. Matrices are layers; all
        other leaves are none, but for biases beside a kernel.

    Returns:
      Groups of layers that agree in (m, n). Empty matrices are left out.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> [[(layer.path, layer.shape) for layer in group]
      ...  for group in trees.layer_groups(tree, trees.matrix_views)]
      [[('up', (1, 3, 3))]]
    """
    known = _views.views_by_path(tree, views)
    leaves = {
        _paths.path_string(path): (index, jnp.shape(leaf))
        for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree))
    }
    groups: dict[tuple[int, int], list[Layer]] = {}
    for path, (index, shape) in leaves.items():
        view = known.get(path)
        if view is None or not math.prod(shape):
            continue
        view = _matrices.checked(
            f"trees.layer_groups: leaf {path!r}",
            shape,
            dataclasses.replace(view, split=None),
        )
        batch = _matrices.batch_axes(view, len(shape))
        k, m, n = (
            math.prod(shape[axis] for axis in axes)
            for axes in (batch, view.reduction, view.output)
        )
        above, _, name = path.rpartition("/")
        bias, bias_shape = leaves.get(f"{above}/bias" if above else "bias", (None, ()))
        if name != "kernel" or math.prod(bias_shape) != k * n:
            bias = None
        layer = Layer(
            above if name == "kernel" else path,
            index,
            bias,
            view,
            (k, m + (bias is not None), n),
        )
        groups.setdefault(layer.shape[1:], []).append(layer)
    return [tuple(group) for group in groups.values()]


def layer_stacks(
    tree: Any, groups: Sequence[Sequence[Layer]]
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any]]:
    """Reads the layers of a tree as one stack of matrices for each group.

    On a mesh every device gets whole matrices, see `gathered`.

    Args:
      tree: Tree of arrays.
      groups: Its layers, from `layer_groups`.

    Returns:
      Arrays of shape (K, m, n), and the function that puts arrays of the same shapes
      into the tree and leaves everything that is no layer as it was.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> groups = trees.layer_groups(tree, trees.matrix_views)
      >>> stacks, restore = trees.layer_stacks(tree, groups)
      >>> print(stacks[0][0, :, 0])
      [1. 1. 0.]
    """
    leaves, treedef = jax.tree.flatten(tree)
    found = {i for group in groups for x in group for i in (x.kernel, x.bias)}
    used = sorted(i for i in found if i is not None)
    whole = dict(zip(used, _tensors.gathered([leaves[i] for i in used]), strict=True))

    def matrices(layer: Layer) -> jax.Array:
        (stack,) = _matrices.to_matrices(whole[layer.kernel], layer.view)
        if layer.bias is None:
            return stack
        k, _, n = layer.shape
        row = whole[layer.bias].reshape(k, 1, n)
        return jnp.concatenate([stack, row.astype(stack.dtype)], axis=1)

    stacks = [jnp.concatenate([matrices(x) for x in group]) for group in groups]

    def restore(stacks: Sequence[jax.Array]) -> Any:
        new = list(leaves)
        for stack, group in zip(stacks, groups, strict=True):
            start = 0
            for layer in group:
                k, m, _ = layer.shape
                part, start = stack[start : start + k], start + k
                if layer.bias is not None:
                    new[layer.bias] = _like(part[:, -1], leaves[layer.bias])
                    part = part[:, : m - 1]
                kernel = leaves[layer.kernel]
                part = _matrices.from_matrices([part], layer.view, kernel.shape)
                new[layer.kernel] = _like(part, kernel)
        return treedef.unflatten(new)

    return stacks, restore


def _like(new: jax.Array, old: jax.Array) -> jax.Array:
    return _tensors.placed_like(new.reshape(old.shape).astype(old.dtype), old)


class LayerStats(NamedTuple):
    """What is known of the inputs and outputs of a layer in a batch of N samples.

    For stacked layers every array has their axes in front.

    Attributes:
      inputs: Mean of the input, shape (fan-in,).
      outputs: Mean of N times the gradient of the mean loss at the output, shape (n,).
      input_moment: Mean of the input's outer product, shape (fan-in, fan-in), or None.
      output_moment: Mean outer product of those gradients, shape (n, n), or None.
    """

    inputs: Any
    outputs: Any
    input_moment: Any = None
    output_moment: Any = None


def layer_statistics(
    who: str,
    layer_stats: Mapping[str, Any] | None,
    groups: Sequence[Sequence[Layer]],
    *,
    moments: int,
) -> list[tuple[jax.Array, jax.Array]]:
    """Stacks the statistics of the layers like their matrices.

    The input of a bias is 1; what that adds to the statistics is added here.

    Args:
      who: Name of the method, for errors.
      layer_stats: `LayerStats` by path of a layer; for means a pair of them will do.
      groups: The layers, from `layer_groups`.
      moments: 1 for means, 2 for second moments.

    Returns:
      For each group a pair of arrays, (K, m) and (K, n), or (K, m, m) and (K, n, n).

    Raises:
      TypeError: If there are no statistics at all.
      ValueError: If those of a layer are missing or of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> groups = trees.layer_groups(tree, trees.matrix_views)
      >>> stats = {"up": (jnp.zeros(2), jnp.zeros(3))}
      >>> (pair,) = trees.layer_statistics("mkor", stats, groups, moments=1)
      >>> print(pair[0])
      [[0. 0. 1.]]
    """
    if layer_stats is None:
        raise TypeError(
            f"{who}: an update needs layer_stats, a dict from the path of each layer to"
            " statistics of its inputs and of the gradients at its outputs;"
            " optlab.lab.capture makes it for Flax models"
        )
    found = [
        [_of_layer(who, layer_stats, layer, moments) for layer in group]
        for group in groups
    ]
    return [
        (jnp.concatenate([a for a, _ in group]), jnp.concatenate([g for _, g in group]))
        for group in found
    ]


def _of_layer(
    who: str, layer_stats: Mapping[str, Any], layer: Layer, moments: int
) -> tuple[jax.Array, jax.Array]:
    if layer.path not in layer_stats:
        raise ValueError(
            f"{who}: layer_stats has nothing for {layer.path!r}, but for"
            f" {sorted(layer_stats)}; pass its statistics, or leave it alone with"
            f" views=partial(trees.matrix_views, rules=[({layer.path!r}, None)])"
        )
    stats = LayerStats(*_tensors.gathered(tuple(layer_stats[layer.path])))
    k, m, n = layer.shape
    inputs = m - (layer.bias is not None)

    def stacked(name: str, size: int, rank: int) -> jax.Array:
        x, shape = getattr(stats, name), (k, *(size,) * rank)
        if (
            x is None
            or x.shape[x.ndim - rank :] != shape[1:]
            or x.size != math.prod(shape)
        ):
            raise ValueError(
                f"{who}: layer_stats of {layer.path!r} has {name}"
                f" {None if x is None else x.shape}, wanted {shape}"
            )
        return x.reshape(shape)

    a = stacked("inputs", inputs, 1)
    one = jnp.ones((k, 1), a.dtype)
    means = jnp.concatenate([a, one], axis=1) if inputs < m else a
    if moments == 1:
        return means, stacked("outputs", n, 1)
    a = stacked("input_moment", inputs, 2)
    if inputs < m:
        a = jnp.concatenate([a, means[:, None, :inputs]], axis=1)
        a = jnp.concatenate([a, means[:, :, None]], axis=2)
    return a, stacked("output_moment", n, 2)
