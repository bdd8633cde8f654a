"""The AdamW that low-memory optimizers carry along for parameters of one axis."""

import optax

from optlab import optimizers


def adamw(
    learning_rate: float, *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW that adds eps to the root before its bias is corrected.

    Seen from Adam as it is written elsewhere, eps shrinks from step to step.
    """
    return optax.inject_hyperparams(optimizers.adamw)(
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=lambda count: eps / (1 - b2 ** (count.astype(float) + 1)) ** 0.5,
        weight_decay=weight_decay,
    )
