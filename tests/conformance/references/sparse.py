"""Methods that train a part of the entries, in float64 NumPy."""

import jax
import numpy as np


def sparse_finetuning(h):
    """Around AdamW with the rate 0.01 and the decay 0.1."""

    def reference(params, grads):
        names = [p[-1].key for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        leaves, tree = jax.tree.flatten(params)
        trained = [np.abs(p) < h["threshold"] for p in leaves]
        m, v, points = [0.0] * len(leaves), [0.0] * len(leaves), []
        for t, g in enumerate(map(jax.tree.leaves, grads), start=1):
            if t == h["progressive_iter"] + 1:
                near = [np.abs(p) < h["threshold"] for p in leaves]
                trained = [k & small for k, small in zip(trained, near, strict=True)]
            for i, k in enumerate(trained):
                pull = one_polar_factor(names, leaves, trained, t - 1)[i]
                g[i] = k * (g[i] + h["lambda_rank"] * pull)
                m[i] = 0.9 * m[i] + 0.1 * g[i]
                v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
            root = [np.sqrt(x / (1 - 0.999**t)) + 1e-8 for x in v]
            leaves = [
                p - 0.01 * k * (x / (1 - 0.9**t) / y + 0.1 * p)
                for p, k, x, y in zip(leaves, trained, m, root, strict=True)
            ]
            points.append(tree.unflatten(leaves))
        return points

    return reference


def one_polar_factor(names, leaves, trained, count):
    """U V^T of what is trained of one matrix, drawn shape by shape; zeros elsewhere."""
    found, out = {}, [np.zeros_like(p) for p in leaves]
    for i, p in enumerate(leaves):
        if names[i] == "kernel" and p.size:
            rows = p.size // p.shape[-1] if p.ndim == 4 else p.shape[-2]
            for j in range(p.size // rows // p.shape[-1]):
                found.setdefault((rows, p.shape[-1]), []).append((i, j))
    order = [place for members in found.values() for place in members]
    key = jax.random.split(jax.random.key(0))[0]
    draw = jax.random.randint(jax.random.fold_in(key, count), (), 0, len(order))
    i, j = order[int(draw)]
    (shape,) = (shape for shape, members in found.items() if (i, j) in members)
    sparse = (leaves[i] * trained[i]).reshape(-1, *shape)[j]
    u, _, vt = np.linalg.svd(sparse, full_matrices=False)
    out[i].reshape(-1, *shape)[j] = u @ vt
    return out


REFERENCES = {"sparse_finetuning": sparse_finetuning}
