"""MeZO: steps along random directions, in the memory of a forward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab.solvers import _stacked


class MezoState(NamedTuple):
    """State of `mezo`.

    Attributes:
      count: Steps taken, shape (), int32.
      key: The key of the run. The directions of step t are those of this key and t.
      params: Parameters, {'outside': tree, 'layers': tree of (L, ...)}.
    """

    count: jax.Array
    key: jax.Array
    params: Any


class Mezo(NamedTuple):
    """What `mezo` makes: pure functions, for `jax.jit` with the state donated.

    Attributes:
      init: (params, key) -> state, a copy of both.
      step: (state, batch) -> (state, `TwoPoints`).
      replay: (state, slopes) -> the state that as many steps led to, without the data
        and without the loss; slopes, shape (steps,), are those that were found.
    """

    init: Callable[[Any, jax.Array], MezoState]
    step: Callable[[MezoState, Any], tuple[MezoState, _stacked.TwoPoints]]
    replay: Callable[[MezoState, jax.Array], MezoState]


def mezo(
    loss: _stacked.StackedLoss,
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    eps: float | jax.Array = 1e-3,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    distribution: str = "normal",
    compute_dtype: Any = None,
) -> Mezo:
    """Makes a step of fine-tuning that needs neither gradients nor room for one.

        z ~ N(0, I),   c = (L(w + eps z) - L(w - eps z)) / (2 eps)
        w <- w - eta (c z + weight_decay w)

    It is descent along `estimators.spsa_value_and_grad`, without the estimate: noise is
    drawn again where it is needed, layer by layer. A layer is fetched, moved to both
    sides and used for both hidden states; when c is known each layer is stepped where
    it lies. Beside the state, given that it is donated, there are a few layers at a
    time, two hidden states, and a direction and a point of what is outside the layers,
    which on CPUs takes four times its size to draw. For 16 layers of 512 x 512 it is
    0.46 of the parameters; functions of whole trees need 2.26.

    Steps are small, 1e-6 or 1e-7 for all weights of a language model, 1e-3 for
    prefixes (with eps 0.1), and there are many. Where the parameters are bfloat16, a
    step is rounded up or down by chance, such that the mean is right.

    On a mesh all devices draw the same z, and c is of the loss over the whole batch.
    Leaves may be cut along any axis but that of the layers. Inside `jax.shard_map` it
    is `head_loss` that takes the mean over the devices.

    Args:
      loss: The loss, by its parts.
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      eps: Distance of the two points, in units of the parameters.
      weight_decay: Decay of the weights.
      mask: Which leaves decay: tree of booleans or a function of the parameters. The
        authors leave out biases and the scales of norms.
      distribution: 'normal' or 'rademacher'.
      compute_dtype: Dtype of the parameters that the loss sees; None for their own,
        or float32 where that is narrower.

    Returns:
      The functions. A step whose slope is not finite changes nothing but the count.

    Raises:
      TypeError: If the loss is no `StackedLoss`, does not return one number in float32
        or wider, or changes the hidden state's type in a layer; if the key is not a
        typed one, or the parameters are not of floats and these two parts.
      ValueError: If a number is out of range, leaves differ in the number of layers,
        or eps is below the resolution of the dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import solvers
      >>> loss = solvers.StackedLoss(
      ...     embed=lambda outside, x: x,
      ...     layer=lambda w, h: h + w @ h,
      ...     head_loss=lambda outside, h, x: jnp.sum((h - outside) ** 2))
      >>> mezo = solvers.mezo(loss, 0.01)
      >>> params = {"outside": jnp.ones(2), "layers": jnp.zeros((4, 2, 2))}
      >>> state, step = mezo.init(params, jax.random.key(0)), jax.jit(mezo.step)
      >>> for _ in range(100):
      ...     state, found = step(state, jnp.array([1.0, 2.0]))
      >>> print(f"{loss(params, jnp.array([1.0, 2.0])):.2f} -> {found.value:.2f}")
      1.00 -> 0.00

    Source:
      Malladi et al., "Fine-tuning language models with just forward passes", 2023,
      arXiv:2305.17333, algorithm 1. Differs from the authors' code: parameters are not
      walked in place (which drifts), both hidden states go through a layer together,
      and everything decays unless masked.
    """
    rule = _stacked.Rule(
        "mezo",
        loss,
        learning_rate,
        eps,
        weight_decay,
        mask,
        distribution,
        compute_dtype,
    )

    def init(params: Any, key: jax.Array) -> MezoState:
        key, params = rule.first(params, key)
        return MezoState(jnp.zeros((), jnp.int32), key, params)

    def step(state: MezoState, batch: Any) -> tuple[MezoState, _stacked.TwoPoints]:
        outside, layers = state.params["outside"], state.params["layers"]
        keys = _stacked.Keys.of(jax.random.fold_in(state.key, state.count))

        def visit(hidden: Any, numbered: Any) -> tuple[Any, None]:
            index, w = numbered
            w = _stacked.to_device(w)
            return rule.through(w, keys.layer(index), hidden), None

        hidden = rule.embedded(outside, keys.outside, batch)
        numbered = (jnp.arange(_stacked.depth(layers)), layers)
        hidden, _ = jax.lax.scan(visit, hidden, numbered)
        found = rule.found(outside, keys.outside, hidden, batch)
        return descended(state, found.slope), found

    def descended(state: MezoState, slope: jax.Array) -> MezoState:
        def take(params: Any) -> Any:
            key = jax.random.fold_in(state.key, state.count)
            return rule.descended(params, key, slope, rate)

        rate = rule.rate(state.count)
        # A branch is compiled on its own: the same bits in `step` and in `replay`.
        known = jnp.isfinite(slope)
        params = jax.lax.cond(known, take, lambda params: params, state.params)
        return MezoState(state.count + 1, state.key, params)

    def replay(state: MezoState, slopes: jax.Array) -> MezoState:
        return jax.lax.scan(lambda s, c: (descended(s, c), None), state, slopes)[0]

    return Mezo(init, step, replay)
