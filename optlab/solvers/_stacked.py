"""Losses of models whose layers are alike, and steps through them layer by layer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import estimators, links

PARTS = ("outside", "layers")


@dataclasses.dataclass(frozen=True)
class StackedLoss:
    """A loss of a model whose layers are alike, their parameters stacked.

    Parameters are a dictionary of two trees: 'layers', whose leaves have the layers in
    front, (L, ...), as `nnx.vmap`, `nnx.scan` and `linen.scan` make them; and
    'outside', which is all else, such as embeddings and head. Called with parameters
    and a batch it is an ordinary loss, to differentiate, to evaluate or to estimate
    from; `mezo` and `zo2` go through its parts.

    Attributes:
      embed: (outside, batch) -> hidden state h, a tree of arrays.
      layer: (one layer's parameters, h) -> h of the same shapes and dtypes.
      head_loss: (outside, h, batch) -> number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import solvers
      >>> loss = solvers.StackedLoss(
      ...     embed=lambda outside, x: x,
      ...     layer=lambda w, h: jnp.tanh(w @ h),
      ...     head_loss=lambda outside, h, x: outside["scale"] * jnp.sum(h**2))
      >>> params = {"outside": {"scale": jnp.ones(())}, "layers": jnp.ones((3, 2, 2))}
      >>> print(f"{loss(params, jnp.ones(2)):.3f}")
      1.834
    """

    embed: Callable[[Any, Any], Any]
    layer: Callable[[Any, Any], Any]
    head_loss: Callable[[Any, Any, Any], jax.Array]

    def __call__(self, params: Mapping[str, Any], batch: Any) -> jax.Array:
        """Returns the loss of a batch."""

        def visit(h: Any, w: Any) -> tuple[Any, None]:
            return self.layer(w, h), None

        h = self.embed(params["outside"], batch)
        h, _ = jax.lax.scan(visit, h, params["layers"])
        return self.head_loss(params["outside"], h, batch)


class TwoPoints(NamedTuple):
    """What a step found at the two points beside the parameters.

    Attributes:
      value: Mean of the two losses, shape ().
      slope: (L(w + eps z) - L(w - eps z)) / (2 eps), shape (). A list of them is a log
        from which `Mezo.replay` walks the run again.
    """

    value: jax.Array
    slope: jax.Array


@dataclasses.dataclass(frozen=True)
class Rule:
    """What `mezo` and `zo2` do alike: two points of one layer, and its step."""

    who: str
    loss: StackedLoss
    learning_rate: Any
    eps: float | jax.Array
    weight_decay: float | jax.Array
    mask: Any
    distribution: str
    compute_dtype: Any

    def __post_init__(self) -> None:
        """Raises what can be told before there are parameters."""
        if not isinstance(self.loss, StackedLoss):
            raise TypeError(
                f"{self.who}: loss must be a solvers.StackedLoss, got"
                f" {type(self.loss).__name__}; for any other there is"
                " estimators.spsa_value_and_grad"
            )
        links.require_positive(self.who, eps=self.eps)
        links.require_one_rate(self.who, self.learning_rate)
        links.require_nonnegative(
            self.who, learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )

    def first(self, params: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        """Returns copies of key and parameters, which may be donated, when sound."""
        links.require_key(self.who, key)
        _require_stacked(self.who, params)
        links.require_felt(self.who, params, self.eps, self.compute_dtype)
        self.decays(params)
        return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))((key, dict(params)))

    def rate(self, count: jax.Array) -> jax.Array:
        """Returns the learning rate of a step, float32 or wider."""
        rate = self.learning_rate
        return jnp.asarray(rate(count) if callable(rate) else rate, float)

    def decays(self, params: Any) -> Any:
        """Returns the decay of each leaf."""
        mask = self.mask(params) if callable(self.mask) else self.mask
        try:
            flags = jax.tree.broadcast(True if mask is None else mask, params)
        except ValueError as error:
            raise ValueError(
                f"{self.who}: mask must be a tree of booleans like the parameters, or"
                f" a part of it from the root on: {error}"
            ) from error
        return jax.tree.map(lambda own: self.weight_decay if own else 0.0, flags)

    def embedded(self, outside: Any, key: jax.Array, batch: Any) -> tuple[Any, Any]:
        """Returns the hidden states at both points."""
        both = self._one_by_one(
            outside, key, lambda outside, _: self.loss.embed(outside, batch), ()
        )
        plus, minus = (jax.tree.map(lambda x, i=i: x[i], both) for i in range(2))
        return plus, minus

    def through(
        self, w: Any, key: jax.Array, hidden: tuple[Any, Any]
    ) -> tuple[Any, Any]:
        """Sends both hidden states through one layer."""

        def apply(w: Any, h: Any) -> Any:
            new = self.loss.layer(w, h)
            _require_alike(self.who, h, new)
            return new

        plus, minus = map(apply, self._points(w, key), hidden)
        return plus, minus

    def found(self, outside: Any, key: jax.Array, hidden: Any, batch: Any) -> TwoPoints:
        """Returns what the losses at both points say."""

        def value(outside: Any, h: Any) -> jax.Array:
            value = self.loss.head_loss(outside, h, batch)
            links.require_precise_loss(self.who, value)
            return value

        both = jax.tree.map(lambda plus, minus: jnp.stack((plus, minus)), *hidden)
        plus, minus = self._one_by_one(outside, key, value, both)
        return TwoPoints((plus + minus) / 2, (plus - minus) / (2 * self.eps))

    def moved(self, w: Any, decays: Any, key: jax.Array, slope: Any, rate: Any) -> Any:
        """Takes the step of one layer, or of all that is outside."""
        z = estimators.direction_like(key, w, self.distribution)
        leaves, structure = jax.tree.flatten(w)
        chances = range(len(leaves), 2 * len(leaves))  # behind those of the directions

        def move(x: jax.Array, z: jax.Array, decay: Any, i: int) -> jax.Array:
            wide = x.astype(z.dtype)
            new = wide - rate * (slope * z + decay * wide)
            if x.dtype != jnp.bfloat16:
                return new.astype(x.dtype)
            # Rounded to the nearest value, small steps would all be lost.
            return links.to_bfloat16(new, jax.random.fold_in(key, i))

        columns = map(structure.flatten_up_to, (z, decays))
        return structure.unflatten(map(move, leaves, *columns, chances))

    def descended(self, params: Any, key: jax.Array, slope: Any, rate: Any) -> Any:
        """Takes the step of all parameters, layer after layer where they lie."""
        decays, keys = self.decays(params), Keys.of(key)

        def visit(index: Any, layers: Any) -> Any:
            w, own = fetched(layers, index), keys.layer(index)
            w = self.moved(w, decays["layers"], own, slope, rate)
            return replaced(layers, index, w)

        layers = params["layers"]
        layers = jax.lax.fori_loop(0, depth(layers), visit, layers)
        own = decays["outside"]
        outside = self.moved(params["outside"], own, keys.outside, slope, rate)
        return {"outside": outside, "layers": layers}

    def _points(self, w: Any, key: jax.Array) -> tuple[Any, Any]:
        z = estimators.direction_like(key, w, self.distribution)
        dtype = self.compute_dtype
        plus, minus = (
            estimators.shifted(w, z, by, compute_dtype=dtype)
            for by in (self.eps, -self.eps)
        )
        return plus, minus

    def _one_by_one(
        self, outside: Any, key: jax.Array, function: Callable[..., Any], hidden: Any
    ) -> Any:
        """Goes to one point after the other; what is outside may be large."""
        z = estimators.direction_like(key, outside, self.distribution)
        dtype = self.compute_dtype

        def at(point: tuple[jax.Array, Any]) -> Any:
            by, h = point
            return function(estimators.shifted(outside, z, by, compute_dtype=dtype), h)

        return jax.lax.map(at, (jnp.array([self.eps, -self.eps]), hidden))


class Keys(NamedTuple):
    """The keys of a step: of what is outside the layers, and of each layer."""

    outside: jax.Array
    layers: jax.Array

    @classmethod
    def of(cls, key: jax.Array) -> "Keys":
        """Makes them from the key of the step."""
        return cls(*jax.random.split(key))

    def layer(self, index: Any) -> jax.Array:
        """Makes the key of a layer."""
        return jax.random.fold_in(self.layers, index)


def to_device(w: Any) -> Any:
    """Brings a layer from the host, if it is there."""
    return jax.device_put(w, jax.memory.Space.Device)


def fetched(layers: Any, index: Any) -> Any:
    """Returns one layer, on the device."""
    row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), layers)
    return jax.tree.map(lambda x: jnp.squeeze(x, 0), to_device(row))


def replaced(layers: Any, index: Any, w: Any) -> Any:
    """Writes one layer where it lies, on the device or on the host."""

    def put(x: jax.Array, new: jax.Array) -> jax.Array:
        row = jax.device_put(new[None], jax.typeof(x).memory_space)
        return jax.lax.dynamic_update_slice_in_dim(x, row, index, 0)

    return jax.tree.map(put, layers, w)


def depth(layers: Any) -> int:
    """Returns the number of layers."""
    return jax.tree.leaves(layers)[0].shape[0]


def _require_stacked(who: str, params: Any) -> None:
    if not isinstance(params, Mapping) or set(params) != set(PARTS):
        got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise TypeError(
            f"{who}: params must be a dictionary of two trees, 'outside' and 'layers',"
            f" got {got}"
        )
    links.require_one_length(
        f"{who}: every leaf of params['layers'] has the layers in front, (L, ...), one"
        " or more",
        params["layers"],
    )


def _require_alike(who: str, h: Any, new: Any) -> None:
    """Raises unless a layer gives back what it takes."""
    took, gave = (
        jax.tree.map(lambda x: jax.typeof(x).str_short(), t) for t in (h, new)
    )
    if took != gave:
        raise TypeError(
            f"{who}: layer must return a hidden state as it takes, {took}, got {gave}"
        )
