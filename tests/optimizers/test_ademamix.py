"""AdEMAMix beside AdamW, and how its slow mean begins."""

import numpy as np
import optax

from optlab import optimizers
from tests.optimizers import fixture


def test_without_warm_ups_it_is_optax_s():
    got = fixture.run(optimizers.ademamix, b3=0.99, weight_decay=0.1)
    want = fixture.run(optax.contrib.ademamix, b3=0.99, weight_decay=0.1)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_without_its_slow_mean_is_adamw():
    got = fixture.run(optimizers.ademamix, alpha=0.0, weight_decay=0.1)
    want = fixture.run(optimizers.adamw, weight_decay=0.1)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_warms_up_from_step_one_to_its_last():
    # The slow mean alone: the first gradient with a quarter of alpha, the fourth whole.
    settings = {"b1": 0.0, "alpha_warmup_steps": 4, "b3_warmup_steps": 4, "b3": 0.75}
    with_slow = fixture.run(optimizers.ademamix, steps=4, alpha=8.0, **settings)
    without = fixture.run(optimizers.ademamix, steps=4, alpha=0.0, **settings)
    first = (with_slow[0] - without[0]) / -fixture.RATE
    # The half-life at step 1 is a quarter of b3's: b = 0.75^4.
    np.testing.assert_allclose(
        np.abs(first), 8 / 4 * (1 - 0.75**4) * np.ones((2, 2)), rtol=1e-6
    )
