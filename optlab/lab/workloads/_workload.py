"""What a workload is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from optlab import lab

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, its data and its loss.

    Attributes:
      name: Name that tells this workload from every other one, its size included.
      make_model: From a seed to a new model.
      batch: From a seed and a step to the batch for that step. A pure function, so that
        a run continues from its step alone; axis 0 of every array is the example.
      loss: From a model and a batch to the mean loss, in nats, and other metrics.
      valid_batches: Returns the validation batches, all of the same size and the same
        at every call.
      tokens_per_step: Characters or images in a training batch.
    """

    name: str
    make_model: Callable[[int], nnx.Module]
    batch: Callable[[int, int], Batch]
    loss: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]]
    valid_batches: Callable[[], tuple[Batch, ...]]
    tokens_per_step: int


def pick_size(workload: str, size: str, sizes: dict[str, Any]) -> Any:
    """Returns the settings of one size of a workload.

    Args:
      workload: The workload's name, for the error.
      size: The size that is wanted.
      sizes: Settings by size.

    Raises:
      LabError: If there is no such size.
    """
    if size not in sizes:
        raise lab.LabError(
            f"workload '{workload}' has no size '{size}'; its sizes are: "
            + ", ".join(sizes)
        )
    return sizes[size]
