"""Curves that follow a law exactly, or with noise, for tests of fits."""

import jax
import jax.numpy as jnp
import numpy as np

from optlab import laws, schedules

STEPS, PEAK = 400, 0.02

PARAMS = {
    "power": {"L0": 1.5, "A": 2.0, "alpha": 0.5},
    "annealing": {"L0": 1.5, "A": 2.0, "alpha": 0.5, "C": 0.8},
    "progress": {
        **{"L0": 1.5, "A": 3.0, "alpha": 0.4},
        **{"B": 8.0, "tau": 12.0, "power": 0.45},
    },
    "multi_power": {
        **{"L0": 1.5, "A": 2.0, "alpha": 0.5},
        **{"B": 8.0, "C": 1.4, "beta": 0.55, "gamma": 0.6},
    },
}

SCHEDULES = {
    "constant": schedules.constant(PEAK, warmup_steps=20),
    "cosine": schedules.cosine(PEAK, total_steps=STEPS, warmup_steps=20),
    "wsd": schedules.wsd(PEAK, total_steps=STEPS, decay_steps=80, warmup_steps=20),
    "drop": schedules.step_decay(PEAK, boundaries=[200], factor=0.3, warmup_steps=20),
}


def make(name):
    return laws.LAWS[name](**({"decay": 0.95} if name == "annealing" else {}))


def rate_of(schedule, steps=STEPS):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float64)


def losses(law, params, rate, step, warmup=20):
    with jax.enable_x64(True):
        found = law.losses({"peak": PEAK, **params}, jnp.asarray(rate), warmup, step)
        return np.asarray(found)


def curve(law, schedule, *, noise=0.0, seed=0, name="curve"):
    rate, step = rate_of(schedule), np.arange(30, STEPS + 1, 5)
    exact = losses(law, PARAMS[law.name], rate, step)
    scatter = np.random.default_rng(seed).normal(size=step.size)
    return laws.Curve(step, exact * (1 + noise * scatter), rate, name)
