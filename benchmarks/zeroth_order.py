"""Memory of steps with and without gradients, as the depth of a model grows.

    python benchmarks/zeroth_order.py

No step is run: they are compiled for a stack of square layers, with their state
donated, and the compiler says what they need beside arguments and results. The table
has that in units of the parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optlab import estimators, solvers

WIDTH, OUTSIDE = 512, 16
DEPTHS, TOKENS = (4, 16, 64), (64, 4096)

LOSS = solvers.StackedLoss(
    embed=lambda outside, x: x @ outside["embed"],
    layer=lambda w, h: h + jnp.tanh(h @ w),
    head_loss=lambda outside, h, x: jnp.mean((h @ outside["head"]) ** 2),
)


def backpropagation(params: Any, key: jax.Array, x: jax.Array) -> Any:
    """Takes a step of gradient descent."""
    grads = jax.grad(LOSS)(params, x)
    return jax.tree.map(lambda w, g: w - 1e-6 * g, params, grads)


def unrolled(params: Any, key: jax.Array, x: jax.Array) -> Any:
    """Takes a step of gradient descent with each layer an array of its own."""

    def loss(params: Any) -> jax.Array:
        h = LOSS.embed(params["outside"], x)
        for w in params["layers"]:
            h = LOSS.layer(w, h)
        return LOSS.head_loss(params["outside"], h, x)

    return jax.tree.map(lambda w, g: w - 1e-6 * g, params, jax.grad(loss)(params))


def rematerialized(params: Any, key: jax.Array, x: jax.Array) -> Any:
    """Takes a step of gradient descent that keeps a hidden state for each layer."""
    again = solvers.StackedLoss(LOSS.embed, jax.checkpoint(LOSS.layer), LOSS.head_loss)
    grads = jax.grad(again)(params, x)
    return jax.tree.map(lambda w, g: w - 1e-6 * g, params, grads)


def whole_trees(params: Any, key: jax.Array, x: jax.Array) -> Any:
    """Takes a step along the estimate, which is built."""
    grads = estimators.spsa_value_and_grad(LOSS, params, key, x).grads
    return jax.tree.map(lambda w, g: w - 1e-6 * g, params, grads)


def mezo(state: Any, key: jax.Array, x: jax.Array) -> Any:
    """Takes a step layer by layer."""
    return solvers.mezo(LOSS, 1e-6).step(state, x)


def zo2(state: Any, key: jax.Array, x: jax.Array) -> Any:
    """Takes a step layer by layer, with the layers in the host's memory."""
    return solvers.zo2(LOSS, 1e-6).step(state, x)


def first(make: Callable[..., Any]) -> Callable[[Any, jax.Array], Any]:
    """Returns what makes the first state of a solver."""
    return make(LOSS, 1e-6).init


STEPS: dict[str, tuple[Callable, Callable]] = {
    "gradients": (backpropagation, lambda params, key: params),
    "gradients, layers apart": (
        unrolled,
        lambda params, key: {**params, "layers": list(params["layers"])},
    ),
    "gradients, layers computed twice": (rematerialized, lambda params, key: params),
    "`spsa_value_and_grad`": (whole_trees, lambda params, key: params),
    "`mezo`": (mezo, first(solvers.mezo)),
    "`zo2`": (zo2, first(solvers.zo2)),
}


def ratio(name: str, depth: int, tokens: int) -> float:
    """Returns temporary bytes of a step over bytes of the parameters."""
    step, init = STEPS[name]
    params = {
        "outside": {
            "embed": jnp.zeros((OUTSIDE, WIDTH)),
            "head": jnp.zeros((WIDTH, OUTSIDE)),
        },
        "layers": jnp.zeros((depth, WIDTH, WIDTH)),
    }
    key, x = jax.random.key(0), jnp.zeros((tokens, OUTSIDE))
    run = jax.jit(step, donate_argnums=0).lower(init(params, key), key, x)
    used = run.compile().memory_analysis()
    if used is None:
        raise SystemExit("zeroth_order: this backend does not tell what a step needs")
    return used.temp_size_in_bytes / sum(x.nbytes for x in jax.tree.leaves(params))


def main() -> None:
    """Prints the table."""
    columns = [(tokens, depth) for tokens in TOKENS for depth in DEPTHS]
    heads = [f"{depth} layers, {tokens} tokens" for tokens, depth in columns]
    print(f"| step | {' | '.join(heads)} |")
    print(f"| --- |{' ---: |' * len(columns)}")
    for name in STEPS:
        found = [f"{ratio(name, depth, tokens):.2f}" for tokens, depth in columns]
        print(f"| {name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
