"""Methods that set their own rate, in float64 NumPy."""

import jax
import numpy as np

from tests.conformance.references import walking

LEVEL = 100.0  # of the linear loss of the conformance suite


def one_vector(step):
    """Runs step(x, g, memory) -> (x, memory) over all entries of a tree together."""

    def reference(params, grads):
        leaves, tree = jax.tree.flatten(params)
        ends = np.cumsum([x.size for x in leaves])[:-1]
        x, memory, points = np.concatenate([x.ravel() for x in leaves]), None, []
        for gradient in grads:
            g = np.concatenate([g.ravel() for g in jax.tree.leaves(gradient)])
            x, memory = step(x, g, memory)
            parts = zip(np.split(x, ends), leaves, strict=True)
            points.append(tree.unflatten([p.reshape(y.shape) for p, y in parts]))
        return points

    return reference


def prodigy(h):
    """The authors' code with decoupled decay; slices are those of a single leaf."""
    b1, b2, d0, lr = h["b1"], h["b2"], h["d0"], h["learning_rate"]
    b3, part = h["b3"] or np.sqrt(b2), slice(None, None, h["slice_p"])

    def step(x, g, memory):
        x0, m, v, s, r, d, d_max, k = memory or (x, 0.0, 0.0, 0.0, 0.0, d0, d0, 1)
        bias = np.sqrt(1 - b2**k) / (1 - b1**k) if h["bias_correction"] else 1.0
        dlr = d * lr * bias
        r = b3 * r + d / d0 * dlr * (g[part] @ (x0 - x)[part])
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * (d * g) ** 2
        s = b3 * s + d / d0 * dlr * g[part]
        estimate = h["d_coef"] * r / np.abs(s).sum()
        d = max(d, estimate) if d == d0 else d
        d_max = max(d_max, estimate)
        d = min(d_max, d * h["growth_rate"])
        u = m / (np.sqrt(v) + d * h["eps"]) + h["weight_decay"] * x
        return x - dlr * u, (x0, m, v, s, r, d, d_max, k + 1)

    return one_vector(step)


def dadapt_adam(h):
    """The authors' code with its defaults; decay is decoupled or in the gradient."""
    b1, b2, q, decay = h["b1"], h["b2"], np.sqrt(h["b2"]), h["weight_decay"]

    def step(x, g, memory):
        m, v, s, r, d, k = memory or (0.0, 0.0, 0.0, 0.0, h["d0"], 1)
        g = g if h["decoupled"] else g + decay * x
        bias = np.sqrt(1 - b2**k) / (1 - b1**k) if h["bias_correction"] else 1.0
        dlr = d * h["learning_rate"] * bias
        r = q * r + (1 - q) * dlr * np.sum(g * s / (np.sqrt(v) + h["eps"]))
        m, v = b1 * m + (1 - b1) * dlr * g, b2 * v + (1 - b2) * g * g
        s = q * s + (1 - q) * dlr * g
        estimate = r / ((1 - q) * np.abs(s).sum())
        d = max(d, min(estimate, d * h["growth_rate"]))
        x = x * (1 - decay * dlr) if h["decoupled"] else x
        return x - m / (np.sqrt(v) + h["eps"]), (m, v, s, r, d, k + 1)

    return one_vector(step)


def dadapt_sgd(h):
    """The authors' code: a mean of the sequence x_0 - s; decay is in the norm."""

    def step(x, g, memory):
        g = g + h["weight_decay"] * x
        x0, s, r, d, norm = memory or (x, 0.0 * x, 0.0, h["d0"], np.linalg.norm(g))
        dlr = d * h["learning_rate"] / norm
        r, s = r + dlr * (g @ s), s + dlr * g
        d = max(d, min(2 * r / np.linalg.norm(s), d * h["growth_rate"]))
        x = h["momentum"] * x + (1 - h["momentum"]) * (x0 - s)
        return x, (x0, s, r, d, norm)

    return one_vector(step)


def dadapt_adan(h):
    """The authors' code, with proximal decay."""
    b1, b2, b3, decay = h["b1"], h["b2"], h["b3"], h["weight_decay"]

    def step(x, g, memory):
        m, v, n, s, gsq, d, last = memory or (0.0, 0.0, 0.0, 0.0, 0.0, h["d0"], g)
        dlr, diff = d * h["learning_rate"], g - last
        m, v = b1 * m + dlr * (1 - b1) * g, b2 * v + dlr * (1 - b2) * diff
        n = b3 * n + (1 - b3) * (g + b2 * diff) ** 2
        denom = np.sqrt(n) + h["eps"]
        s = b3 * s + dlr * (1 - b3) * g
        gsq = b3 * gsq + np.sum(g * g / denom) * dlr**2 * (1 - b3)
        estimate = (np.sum(s * s / denom) / (1 - b3) - gsq) / np.abs(s).sum()
        d = max(d, min(estimate, d * h["growth_rate"]))
        x = (x - (m + b2 * v) / denom) / (1 + dlr * decay)
        return x, (m, v, n, s, gsq, d, g)

    return one_vector(step)


def dadapt_lion(h):
    """The authors' code: rates are in the momentum, but not beside it."""
    b1, b2, q, lr = h["b1"], h["b2"], np.sqrt(h["b2"]), h["learning_rate"]

    def step(x, g, memory):
        m, s, r, d = memory or (0.0, np.zeros_like(x), 0.0, h["d0"])
        dlr, u = d * lr, np.sign(b1 * m + (1 - b1) * g)
        x = x * (1 - dlr * h["weight_decay"]) - dlr * u
        m, r = b2 * m + (1 - b2) * dlr * g, q * r + (1 - q) * dlr * (u @ s)
        s = q * s + (1 - q) * dlr * u
        estimate = r / ((1 - q) * np.abs(s).sum())
        return x, (m, s, r, max(d, min(estimate, d * h["growth_rate"])))

    return one_vector(step)


def schedule_free(direction):
    """The paper's three sequences; direction(g, t, v, h) -> (u, v)."""

    def of_row(h):
        def step(y, g, memory):
            z, x, total, largest, v, t = memory or (y, y, 0.0, 0.0, 0.0, 1)
            warm = min(1.0, t / h["warmup_steps"]) if h["warmup_steps"] else 1.0
            eta = warm * h["learning_rate"]
            u, v = direction(g, t, v, h)
            z = z - eta * (u + h["weight_decay"] * (y if h["decay_at"] == "y" else z))
            largest = max(largest, eta)
            weight = t ** h["r"] * largest ** h["weight_lr_power"]
            total = total + weight
            x = (1 - weight / total) * x + weight / total * z
            y = (1 - h["b1"]) * z + h["b1"] * x
            return y, (z, x, total, largest, v, t + 1)

        return one_vector(step)

    return of_row


def over_rms(g, t, v, h):
    v = h["b2"] * v + (1 - h["b2"]) * g * g
    return g / (np.sqrt(v / (1 - h["b2"] ** t)) + h["eps"]), v


def over_gradients(weighted):
    """The paper of DoG, or that of DoWG, on one layer: (x, g, memory)."""

    def of_row(h):
        def step(x, g, memory):
            size = np.linalg.norm(x)
            x0, r, total = memory or (x, h["initial_distance"] * (1 + size), 0.0)
            g = g + h["weight_decay"] * x
            r = max(r, np.linalg.norm(x - x0))
            total = total + np.sum(g * g) * (r * r if weighted else 1)
            eta = r * r / np.sqrt(total) if weighted else r / np.sqrt(total + h["eps"])
            return x - h["learning_rate"] * eta * g, (x0, r, total)

        return step

    return of_row


def ldog(h):
    """DoG of each matrix, and of each vector of leaves that are none."""
    one = over_gradients(weighted=False)(h)

    def rows(p, g, t, memory):
        stacks = [x.reshape(-1, *x.shape[-1:]) for x in (p, g)]
        memory = memory or [None] * len(stacks[0])
        done = [one(*pair, m) for *pair, m in zip(*stacks, memory, strict=True)]
        return np.reshape([x for x, _ in done], p.shape), [m for _, m in done]

    def matrix(p, g, t, memory):
        return one(p, g, memory)

    return walking.each_matrix(matrix, walking.each_leaf(rows), ("kernel", "embedding"))


def mechanic(h):
    """The paper around Adam at a rate of 1, from the point where it started."""
    n, b = h["decays"], 1 - 0.1 ** np.arange(1, h["decays"] + 1)

    def step(x, g, memory):
        none = (x, 0 * x, np.full(n, h["s_init"] / n), *np.zeros((3, n)), 0.0, 0.0, 1)
        x0, delta, s, r, v, m, mu, nu, t = memory or none
        pull = s.sum() * np.linalg.norm(g) / np.linalg.norm(x) * x
        product = (g + h["weight_decay"] * pull) @ delta
        r = np.maximum(0, b * r - s * product)
        v, m = b**2 * v + product**2, np.maximum(b * m, abs(product))
        if v.all():
            s = (h["s_init"] / n * m + r) / (np.sqrt(v) + h["eps"])
        mu, nu = 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g * g
        root = np.sqrt(nu / (1 - 0.999**t)) + 1e-8
        delta = delta - mu / (1 - 0.9**t) / root
        return x0 + s.sum() * delta, (x0, delta, s, r, v, m, mu, nu, t + 1)

    return one_vector(step)


def momo(h):
    """The authors' code of MoMo or, with b2, of MoMo-Adam; the loss is h["loss"]."""
    adam, b1 = "b2" in h, h["b1"]
    correct = adam or h["bias_correction"]

    def step(x, g, memory):
        value = h["loss"](x) if "loss" in h else g @ x + LEVEL
        first = (0.0, 0.0, 0.0) if correct else (value, g, g @ x)
        f, d, dots, v, low, t = memory or (*first, 0.0, h["lower_bound"], 1)
        f, d = b1 * f + (1 - b1) * value, b1 * d + (1 - b1) * g
        dots, rho, metric = b1 * dots + (1 - b1) * (g @ x), 1.0, 1.0
        if correct:
            rho = 1 - b1**t
        if adam:
            v = h["b2"] * v + (1 - h["b2"]) * g * g
            metric = np.sqrt(v / (1 - h["b2"] ** t)) + h["eps"]
        square, c = d @ (d / metric), 1 + h["learning_rate"] * h["weight_decay"]
        cap = c * (f - dots) + d @ x
        if h["adapt_lower_bound"] and cap < c * rho * low:
            low = max(cap / (2 * c * rho), h["lower_bound"])
        tau = min(h["learning_rate"] / rho, max(cap - c * rho * low, 0) / square)
        if h["adapt_lower_bound"]:
            reached = (f + d @ x - dots - tau * square / 2) / rho
            low = max(reached, h["lower_bound"])
        return (x - tau * d / metric) / c, (f, d, dots, v, low, t + 1)

    return one_vector(step)


REFERENCES = {
    "dadapt_adam": dadapt_adam,
    "dadapt_adan": dadapt_adan,
    "dadapt_lion": dadapt_lion,
    "dadapt_sgd": dadapt_sgd,
    "dog": lambda h: one_vector(over_gradients(weighted=False)(h)),
    "dowg": lambda h: one_vector(over_gradients(weighted=True)(h)),
    "ldog": ldog,
    "mechanic": mechanic,
    "momo": momo,
    "momo_adam": momo,
    "prodigy": prodigy,
    "schedule_free_adamw": schedule_free(over_rms),
    "schedule_free_sgd": schedule_free(lambda g, t, v, h: (g, v)),
}
