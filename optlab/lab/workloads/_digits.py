"""Handwritten digits: 1797 images of 8x8 pixels that come with scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from optlab import lab
from optlab.lab.workloads import _workload

CLASSES = 10
TRAIN_IMAGES = 1509  # leaves 288 for validation, which many numbers of devices divide
BATCH = {"default": 64, "tiny": 8}


@functools.cache
def read_digits() -> tuple[_workload.Batch, _workload.Batch]:
    """Reads the images and holds out 288 of them, always the same.

    Returns:
      Training and validation data: `images`, shape (n, 8, 8, 1), float32 from 0 to 1,
      and `labels`, shape (n,), int32.

    Raises:
      LabError: If scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise lab.LabError(
            "workload 'digits': the images come with the package 'scikit-learn', which"
            " is not installed. Install the lab: pip install 'optlab-jax[lab]'"
        ) from None
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    # The file lists the writers one after another; a fixed shuffle mixes them.
    order = np.random.default_rng(0).permutation(len(images))
    first, last = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    labels = labels.astype(np.int32)
    return (
        {"images": images[first], "labels": labels[first]},
        {"images": images[last], "labels": labels[last]},
    )


class ConvNet(nnx.Module):
    """Two 3x3 convolutions, each with a GELU and a pooling, then a linear head."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.first_conv = nnx.Conv(1, channels, (3, 3), rngs=rngs)
        self.second_conv = nnx.Conv(channels, 2 * channels, (3, 3), rngs=rngs)
        self.head = nnx.Linear(2 * 2 * 2 * channels, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for conv in (self.first_conv, self.second_conv):
            x = nnx.avg_pool(nnx.gelu(conv(x)), (2, 2), strides=(2, 2))
        return self.head(x.reshape(len(x), -1))


class EncoderBlock(nnx.Module):
    """Pre-norm transformer block: attention, then a GELU feed-forward layer."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.feed_forward_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(nnx.gelu(self.up(self.feed_forward_norm(x))))


class VisionTransformer(nnx.Module):
    """A transformer over the sixteen 2x2 patches of an image; the mean goes out."""

    def __init__(self, width: int, layers: int, heads: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(2 * 2, width, rngs=rngs)
        self.position_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (16, width))
        )
        self.blocks = nnx.List(
            [EncoderBlock(width, heads, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
        x = self.embed(patches.reshape(-1, 16, 4)) + self.position_embedding[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@functools.cache
def digits(size: str) -> _workload.Workload:
    """Builds the workload with a convolutional net."""
    channels = _workload.pick_size("digits", size, {"default": 16, "tiny": 2})
    return _build("digits", size, functools.partial(ConvNet, channels))


@functools.cache
def digits_vit(size: str) -> _workload.Workload:
    """Builds the workload with a vision transformer."""
    shapes = {"default": (48, 3, 4), "tiny": (8, 1, 2)}
    width, layers, heads = _workload.pick_size("digits-vit", size, shapes)
    return _build(
        "digits-vit", size, functools.partial(VisionTransformer, width, layers, heads)
    )


def _build(name: str, size: str, model) -> _workload.Workload:
    train, valid = read_digits()
    count = BATCH[size]

    def batch(seed: int, step: int) -> _workload.Batch:
        rng = np.random.default_rng((seed, step))
        picked = rng.integers(0, len(train["labels"]), count)
        return {key: value[picked] for key, value in train.items()}

    return _workload.Workload(
        name=name if size == "default" else f"{name}-{size}",
        make_model=lambda seed: model(rngs=nnx.Rngs(seed)),
        batch=batch,
        loss=loss,
        valid_batches=lambda: (valid,),
        tokens_per_step=count,
    )


def loss(
    model: nnx.Module, batch: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of the label, in nats per image, and the accuracy."""
    logits, labels = model(batch["images"]), batch["labels"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), {"accuracy": jnp.mean(logits.argmax(-1) == labels)}
