"""Methods that measure curvature, in float64 NumPy."""

import jax
import numpy as np

from tests.conformance.references.walking import each_leaf


def mfac(h):
    """The Fisher matrix in full, and a dense solve."""

    def flat(tree):
        return np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])

    def reference(params, grads):
        window, points = [], []
        for g in grads:
            window = [*window, flat(g)][-h["window"] :]
            fisher = h["damping"] * np.eye(window[0].size)
            fisher += sum(np.outer(x, x) for x in window) / h["window"]
            step = iter(np.linalg.solve(fisher, window[-1]))
            params = jax.tree.map(
                lambda p, u=step: (
                    p
                    - h["learning_rate"]
                    * np.reshape([next(u) for _ in range(p.size)], p.shape)
                ),
                params,
            )
            points.append(params)
        return points

    return reference


def adahessian(h):
    """The suite's curvature is 1 everywhere, so every block has it too."""

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m = h["b1"] * m + (1 - h["b1"]) * g
        v = h["b2"] * v + (1 - h["b2"]) * 1.0**2
        curvature = np.sqrt(v / (1 - h["b2"] ** t)) ** h["hessian_power"]
        u = m / (1 - h["b1"] ** t) / (curvature + h["eps"])
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, v)

    return each_leaf(step)


def sophia(h):
    def step(p, g, t, memory):
        m, curvature = (0.0, 0.0) if memory is None else memory
        m = h["b1"] * m + (1 - h["b1"]) * g
        mean = m / (1 - h["b1"] ** t)
        u = mean / max(h["gamma"] * curvature, h["eps"])
        u = np.clip(u, -h["clip"], h["clip"])
        if (t - 1) % h["every"] == 0:  # after the step that did not use it
            curvature = h["b2"] * curvature + (1 - h["b2"]) * 1.0
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, curvature)

    return each_leaf(step)


def suite_mean(size):
    """The mean input, and output gradient, that the suite gives to every layer."""
    return np.linspace(-0.5, 0.5, size)


def each_layer(step):
    """Runs step(G, t, memory, biased) on the matrix of each layer: (u, memory).

    The other leaves pass through. Returns directions, not parameters.
    """

    def directions(grads, t, memories):
        out = {}
        for name, layer in grads.items():
            out[name] = dict(layer) if isinstance(layer, dict) else layer
            kernel = layer.get("kernel") if isinstance(layer, dict) else None
            if kernel is None or not kernel.size:
                continue
            rows = kernel.size // kernel.shape[-1]
            rows = rows if kernel.ndim == 4 else kernel.shape[-2]
            stack, bias = kernel.reshape(-1, rows, kernel.shape[-1]), layer.get("bias")
            if bias is not None:
                bias = bias.reshape(len(stack), 1, -1)
                stack = np.concatenate([stack, bias], axis=1)
            done = [
                step(g, t, memories.get((name, i)), bias is not None)
                for i, g in enumerate(stack)
            ]
            memories.update({(name, i): memory for i, (_, memory) in enumerate(done)})
            new = np.array([u for u, _ in done])
            out[name]["kernel"] = new[:, :rows].reshape(kernel.shape)
            if bias is not None:
                out[name]["bias"] = new[:, rows].reshape(layer["bias"].shape)
        return out

    return directions


def sgd_behind(directions, h):
    """Momentum and decoupled decay on directions (grads, t, memories) -> tree."""

    def reference(params, grads):
        velocity, memories, points = jax.tree.map(np.zeros_like, params), {}, []
        for t, g in enumerate(grads):
            velocity = jax.tree.map(
                lambda v, u: h["momentum"] * v + u, velocity, directions(g, t, memories)
            )
            params = jax.tree.map(
                lambda p, v: p - h["learning_rate"] * (v + h["weight_decay"] * p),
                params,
                velocity,
            )
            points.append(params)
        return points

    return reference


def mkor(h):
    """With the authors' rule, a refresh each step, and no factor that grows."""

    def moved(inverse, v):
        m = 0.95 * inverse + 0.05 * np.eye(len(v))
        return m - m @ np.outer(v, v) @ m / (1 + v @ m @ v)

    def norms(x, biased):
        kernel = x[: len(x) - biased]
        return np.linalg.norm(kernel) + np.linalg.norm(x[len(kernel) :])

    def step(g, t, memory, biased):
        a = np.append(suite_mean(len(g) - biased), [1.0] * biased)
        vectors = a, suite_mean(g.shape[1])
        pair = [np.eye(len(v)) for v in vectors]
        if t > 0:  # the first refresh forgets its vectors
            pair = [moved(*both) for both in zip(memory, vectors, strict=True)]
        d = pair[0] @ g @ pair[1]
        return d * norms(g, biased) / norms(d, biased), pair

    return sgd_behind(each_layer(step), h)


def kfac(h):
    """The suite's moments never change, so neither do their corrected means."""

    def moment(mean, biased):
        full = np.eye(len(mean) + biased)
        full[: len(mean), : len(mean)] += np.outer(mean, mean)
        full[len(mean) :, : len(mean)] = full[: len(mean), len(mean) :].T[:] = mean
        return full

    def step(g, t, memory, biased):
        a = moment(suite_mean(len(g) - biased), biased)
        s = moment(suite_mean(g.shape[1]), False)
        pi = np.sqrt(np.trace(a) / len(a) / (np.trace(s) / len(s)))
        root = np.sqrt(h["damping"])
        left = np.linalg.inv(a + pi * root * np.eye(len(a)))
        return left @ g @ np.linalg.inv(s + root / pi * np.eye(len(s))), None

    return sgd_behind(each_layer(step), h)


REFERENCES = {
    "adahessian": adahessian,
    "kfac": kfac,
    "mfac": mfac,
    "mkor": mkor,
    "mkor_h": mkor,
    "sophia": sophia,
}
