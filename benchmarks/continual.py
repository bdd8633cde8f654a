"""A task whose data change half-way: plays, then the Python standard library."""

import functools
import pathlib
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from optlab.lab import workloads
from optlab.lab.workloads import _shakespeare

PRINTABLE = "\n" + "".join(map(chr, range(32, 127)))
HELD_OUT = 0.1
VALID_BATCHES, VALID_BATCH = 6, 64


@functools.cache
def texts() -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Encodes both texts in one alphabet and holds out the end of every file.

    Returns:
      Training and validation characters of the plays, then of the sources, and the
      number of characters in the alphabet. Sources are the modules at the top of the
      standard library, of the Python that runs this; what is not printable ASCII in
      them, two in 100,000 characters, is left out.
    """
    plays = _shakespeare.read_plays()
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    sources = [
        path.read_text(encoding="utf-8") for path in sorted(library.glob("*.py"))
    ]
    alphabet = sorted(set(PRINTABLE).union(*plays))
    code = {character: index for index, character in enumerate(alphabet)}
    split = []
    for files in (plays, sources):
        train, valid = [], []
        for text in files:
            codes = np.array([code[c] for c in text if c in code], np.uint8)
            cut = int(len(codes) * (1 - HELD_OUT))
            train.append(codes[:cut])
            valid.append(codes[cut:])
        split.append((np.concatenate(train), np.concatenate(valid)))
    return split, len(alphabet)


@functools.cache
def plays_then_python(switch: int) -> workloads.Workload:
    """Builds the workload.

    Args:
      switch: Step from which on batches come from the sources.

    Returns:
      A workload with the model and the batches of `shakespeare`. Its validation loss
      is the mean over both texts; metrics `plays` and `python` have their losses.
    """
    split, vocab = texts()
    size = _shakespeare.SIZES["default"]

    def make_model(seed: int) -> _shakespeare.Decoder:
        return _shakespeare.Decoder(
            vocab,
            size.width,
            size.layers,
            size.heads,
            last=nnx.initializers.zeros_init(),
            rngs=nnx.Rngs(seed),
        )

    def batch(seed: int, step: int) -> workloads.Batch:
        text = int(step >= switch)
        drawn = _shakespeare.draw(
            split[text][0], (seed, step), size.batch, size.context
        )
        return {**drawn, "text": np.full(size.batch, text)}

    def valid_batches() -> tuple[workloads.Batch, ...]:
        half = VALID_BATCH // 2
        drawn = [
            [
                _shakespeare.draw(valid, (999, index), half, size.context)["tokens"]
                for _, valid in split
            ]
            for index in range(VALID_BATCHES)
        ]
        text = np.repeat([0, 1], half)
        return tuple({"tokens": np.concatenate(x), "text": text} for x in drawn)

    return workloads.Workload(
        name=f"plays-then-python-{switch}",
        make_model=make_model,
        batch=batch,
        loss=loss,
        valid_batches=valid_batches,
        tokens_per_step=size.batch * size.context,
    )


def loss(
    model: nnx.Module, batch: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of the next character, in nats, in all and for each text."""
    tokens = jnp.asarray(batch["tokens"], jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        model(tokens[:, :-1]), tokens[:, 1:]
    ).mean(-1)
    of_text = {
        name: jnp.mean(losses, where=batch["text"] == text)
        for text, name in enumerate(("plays", "python"))
    }
    return losses.mean(), of_text
