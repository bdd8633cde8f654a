"""ZO2: MeZO with the layers in the host's memory, each fetched once a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab.solvers import _stacked


class Zo2State(NamedTuple):
    """State of `zo2`.

    Attributes:
      count: Steps taken, shape (), int32.
      key: The key of the run. The directions of step t are those of this key and t.
      params: Parameters one step behind, {'outside': tree, 'layers': tree of
        (L, ...)}; the layers in the host's memory. Evaluate those of `Zo2.flush`.
      slope: Slope found by the latest step, whose update is due, shape ().
      learning_rate: Its learning rate, shape (); 0 if no update is due.
    """

    count: jax.Array
    key: jax.Array
    params: Any
    slope: jax.Array
    learning_rate: jax.Array


class Zo2(NamedTuple):
    """What `zo2` makes: pure functions, for `jax.jit` with the state donated.

    Attributes:
      init: (params, key) -> state, a copy of both, the layers in the host's memory.
      step: (state, batch) -> (state, `TwoPoints`).
      flush: state -> the state with no update due, to evaluate or to keep.
    """

    init: Callable[[Any, jax.Array], Zo2State]
    step: Callable[[Zo2State, Any], tuple[Zo2State, _stacked.TwoPoints]]
    flush: Callable[[Zo2State], Zo2State]


def zo2(
    loss: _stacked.StackedLoss,
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    eps: float | jax.Array = 1e-3,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    distribution: str = "normal",
    compute_dtype: Any = None,
) -> Zo2:
    """Makes the step of `mezo` for layers that do not fit on the device.

    The update of a step is known when its last layer has been seen. Here it is put off
    to the next step, which visits every layer anyway:

        for each layer:  fetch w from the host
                         w <- w - eta' (c' z' + weight_decay w)    of the step before
                         send both hidden states through w + eps z and w - eps z
                         put w back

    so a layer travels once to and fro. z' is drawn again from the key and the count.
    With `flush` at the end the steps are those of `mezo` with the same key, and
    `Mezo.replay` walks them again from the same slopes.

    Layers stay in 'pinned_host' memory; what is outside them stays on the device. That
    it computes this is tested on CPUs. That transfers hide behind computation on an
    accelerator is up to its compiler, and UNVERIFIED here.

    Args:
      loss: The loss, by its parts.
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      eps: Distance of the two points, in units of the parameters.
      weight_decay: Decay of the weights.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      distribution: 'normal' or 'rademacher'.
      compute_dtype: Dtype of the parameters that the loss sees; None for their own,
        or float32 where that is narrower.

    Returns:
      The functions.

    Raises:
      TypeError: As `mezo`.
      ValueError: As `mezo`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import solvers
      >>> loss = solvers.StackedLoss(
      ...     embed=lambda outside, x: x,
      ...     layer=lambda w, h: h + w @ h,
      ...     head_loss=lambda outside, h, x: jnp.sum((h - outside) ** 2))
      >>> zo2, x = solvers.zo2(loss, 0.01), jnp.array([1.0, 2.0])
      >>> params = {"outside": jnp.ones(2), "layers": jnp.zeros((4, 2, 2))}
      >>> state = zo2.init(params, jax.random.key(0))
      >>> print(state.params["layers"].sharding.memory_kind)
      pinned_host
      >>> behind, found = jax.jit(zo2.step)(state, x)
      >>> print(bool((behind.params["layers"] == 0).all()))
      True
      >>> print(bool((jax.jit(zo2.flush)(behind).params["layers"] == 0).any()))
      False

    Source:
      Wang et al., "ZO2: Scalable zeroth-order fine-tuning for extremely large language
      models with limited GPU memory", 2025, arXiv:2503.12668. Differs from the authors'
      code: directions come from a key, not from the saved state of a generator; a
      slope of 0 does not keep weights from decaying; streams are the compiler's.
    """
    rule = _stacked.Rule(
        "zo2",
        loss,
        learning_rate,
        eps,
        weight_decay,
        mask,
        distribution,
        compute_dtype,
    )

    def init(params: Any, key: jax.Array) -> Zo2State:
        key, params = rule.first(params, key)
        layers = jax.device_put(params["layers"], jax.memory.Space.Host)
        zero = jnp.zeros((), float)
        return Zo2State(
            jnp.zeros((), jnp.int32), key, {**params, "layers": layers}, zero, zero + 0
        )

    def step(state: Zo2State, batch: Any) -> tuple[Zo2State, _stacked.TwoPoints]:
        decays = rule.decays(state.params)
        due = state.slope, state.learning_rate
        keys = _stacked.Keys.of(jax.random.fold_in(state.key, state.count))
        before = _stacked.Keys.of(jax.random.fold_in(state.key, state.count - 1))

        def visit(index: Any, carry: Any) -> Any:
            layers, latest, hidden = carry
            # Put back before the next one is fetched: a loop that reads and writes in
            # any order has to copy all layers.
            layers = _stacked.replaced(layers, jnp.maximum(index - 1, 0), latest)
            w = _stacked.fetched(layers, index)
            w = rule.moved(w, decays["layers"], before.layer(index), *due)
            return layers, w, rule.through(w, keys.layer(index), hidden)

        outside = state.params["outside"]
        outside = rule.moved(outside, decays["outside"], before.outside, *due)
        hidden = rule.embedded(outside, keys.outside, batch)
        layers = state.params["layers"]
        first, depth = _stacked.fetched(layers, 0), _stacked.depth(layers)
        carry = jax.lax.fori_loop(0, depth, visit, (layers, first, hidden))
        layers, last, hidden = carry
        layers = _stacked.replaced(layers, depth - 1, last)
        found = rule.found(outside, keys.outside, hidden, batch)
        params = {"outside": outside, "layers": layers}
        known = jnp.isfinite(found.slope)
        slope = jnp.where(known, found.slope, 0).astype(state.slope.dtype)
        rate = jnp.where(known, rule.rate(state.count), 0)
        return Zo2State(state.count + 1, state.key, params, slope, rate), found

    def flush(state: Zo2State) -> Zo2State:
        key = jax.random.fold_in(state.key, state.count - 1)
        due = state.slope, state.learning_rate
        params = rule.descended(state.params, key, *due)
        zero = jnp.zeros_like(state.slope)
        return state._replace(params=params, slope=zero, learning_rate=zero + 0)

    return Zo2(init, step, flush)
