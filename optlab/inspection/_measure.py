"""What an optimizer needs on a mesh, from its compiled program."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from optlab import sharding
from optlab.inspection import _step


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the compiled step of an optimizer needs; see `measure`.

    Attributes:
      state_bytes: Bytes of state on a device.
      temporary_bytes: Bytes beside arguments and results.
      flops: FLOPs that the compiler counts, transcendental functions as one each;
        decompositions are none of them, of branches the dearest counts, and the body
        of a loop once.
      collectives: What a device sends.
    """

    state_bytes: int
    temporary_bytes: int
    flops: float
    collectives: sharding.Collectives


def measure(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any = None,
    *,
    extra_args: Mapping[str, Any] | None = None,
) -> Measured:
    """Compiles the step that `plan` plans, and counts there. Nothing is run.

    Args:
      tx: The transformation, made for the mesh.
      params: Tree of arrays, or of `jax.ShapeDtypeStruct`.
      param_shardings: As for `sharding.state_shardings`, on a mesh of real devices.
      extra_args: As for `plan`.

    Returns:
      The counts.

    Raises:
      TypeError: As `sharding.state_shardings`.
      ValueError: As `sharding.state_shardings`; or if the backend does not tell.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from optlab import inspection
      >>> place = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())
      >>> params = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)}
      >>> inspection.measure(optax.trace(0.9), params).state_bytes
      256

    Source:
      Written for this library.
    """
    tx = optax.with_extra_args_support(tx)
    at_rest = sharding.state_shardings(tx, params, param_shardings)
    if param_shardings is None:
        param_shardings = jax.tree.map(lambda x: x.sharding, params)
    params = jax.tree.map(_step.placed, params, param_shardings)
    mesh = jax.tree.leaves(param_shardings)[0].mesh

    with jax.set_mesh(mesh):
        state = jax.tree.map(_step.placed, jax.eval_shape(tx.init, params), at_rest)
        jitted = jax.jit(
            _step.step_of(tx),
            donate_argnums=(0, 1),
            out_shardings=(param_shardings, at_rest),
        )
        run = jitted.lower(params, state, params, dict(extra_args or {})).compile()
    memory, cost = run.memory_analysis(), run.cost_analysis()
    if memory is None or not cost:
        raise ValueError("measure: this backend does not tell what a program needs")
    others = 2 * sum(map(_step.share, jax.tree.leaves(params)))
    others += sum(map(_step.share, jax.tree.leaves(extra_args)))
    return Measured(
        state_bytes=int(memory.argument_size_in_bytes - others),
        temporary_bytes=int(memory.temp_size_in_bytes),
        flops=cost["flops"] + cost.get("transcendentals", 0.0),
        collectives=sharding.collectives(run),
    )
