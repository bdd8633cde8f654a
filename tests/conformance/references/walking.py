"""How a reference walks over trees of parameters and gradients."""

import jax
import numpy as np


def each_leaf(step):
    """Runs step(leaf history) over a tree: (p, g, t, memory) -> (p, memory)."""

    def reference(params, grads):
        leaves, tree = jax.tree.flatten(params)
        memories, points = [None] * len(leaves), []
        for t, gradient in enumerate(grads, start=1):
            done = [
                step(p, g, t, memory)
                for p, g, memory in zip(
                    leaves, jax.tree.leaves(gradient), memories, strict=True
                )
            ]
            leaves, memories = [p for p, _ in done], [memory for _, memory in done]
            points.append(tree.unflatten(leaves))
        return points

    return reference


def each_matrix(step, rest, names=("kernel",)):
    """Runs step over single matrices, and the reference `rest` over all other leaves.

    Leaves of these names are matrices on their last two axes, stacked on the others; a
    convolution is one matrix.
    """

    def of_stack(p, g, t, memory):
        rows = p.size // p.shape[-1] if p.ndim == 4 else p.shape[-2]
        if not p.size:
            return p, memory
        stacks = [x.reshape(-1, rows, p.shape[-1]) for x in (p, g)]
        memory = [None] * len(stacks[0]) if memory is None else memory
        done = [step(*pair, t, m) for *pair, m in zip(*stacks, memory, strict=True)]
        return np.reshape([p for p, _ in done], p.shape), [m for _, m in done]

    def reference(params, grads):
        leaves = jax.tree.map_with_path(lambda path, _: path[-1].key, params)

        def only(tree, kernels):
            keep = lambda name, x: x if (name in names) == kernels else None  # noqa: E731
            return jax.tree.map(keep, leaves, tree)

        halves = [
            run(only(params, kernels), [only(g, kernels) for g in grads])
            for run, kernels in ((each_leaf(of_stack), True), (rest, False))
        ]
        return [
            jax.tree.map(
                lambda a, b: b if a is None else a, *both, is_leaf=lambda x: x is None
            )
            for both in zip(*halves, strict=True)
        ]

    return reference


def inner_product(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.sum(x * y)) for x, y in pairs)
