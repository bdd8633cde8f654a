"""One cycle, against Optax's two."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules
from optlab.schedules import shapes
from tests import same_bits

LINEAR = {"shape": shapes.linear, "final_steps": 150}


def test_the_defaults_are_those_of_optax():
    ours = schedules.one_cycle(1e-3, total_steps=1000)
    theirs = optax.cosine_onecycle_schedule(1000, 1e-3)
    steps = jnp.arange(1101)
    np.testing.assert_allclose(
        ours(steps), jax.vmap(theirs)(steps), rtol=2e-5, atol=1e-10
    )


def test_the_linear_form_with_its_final_stretch_is_optax_too():
    ours = schedules.one_cycle(1e-3, total_steps=1000, **LINEAR)
    theirs = optax.linear_onecycle_schedule(1000, 1e-3)
    steps = jnp.arange(1101)
    np.testing.assert_allclose(
        ours(steps), jax.vmap(theirs)(steps), rtol=2e-5, atol=1e-10
    )
    want = {0: 4e-5, 300: 1e-3, 850: 4e-5, 925: 2.0002e-5, 1000: 4e-9, 1100: 4e-9}
    np.testing.assert_allclose([ours(t) for t in want], list(want.values()), rtol=2e-6)


@pytest.mark.parametrize("more", [{}, LINEAR])
def test_first_peak_and_end_are_exact(more):
    # Lengths for which compiled division by a constant misses 1.
    for total, warmup in ((997, 83), (641, 41), (1000, 47), (500, 0)):
        rate = schedules.one_cycle(
            1.1e-3, total_steps=total, warmup_steps=warmup, **more
        )
        assert rate(warmup) == np.float32(1.1e-3)
        assert warmup == 0 or rate(0) == np.float32(1.1e-3 / 25)
        for step in (total, total + 1, 2**31 - 1):
            assert rate(step) == np.float32(1.1e-3 / 25 / 1e4)
        steps = jnp.arange(total + 10)
        eager = np.asarray(rate(steps))
        assert (np.diff(eager[: warmup + 1]) > 0).all()
        assert (np.diff(eager[warmup:]) <= 0).all()
        same_bits.require(jax.jit(rate)(steps), eager)
        same_bits.require(jax.lax.map(rate, steps), eager)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"total_steps": 0}, ValueError, "total_steps must be at least 1"),
        ({"warmup_steps": 100}, ValueError, "leave nothing of total_steps=100"),
        ({"warmup_steps": 40, "final_steps": 60}, ValueError, "final_steps=60 leave"),
        ({"warmup_steps": 0.3}, TypeError, r"must be an integer, got 0\.3"),
        ({"div_factor": 0.5}, ValueError, r"div_factor must be at least 1, got 0\.5"),
        ({"final_div_factor": 0}, ValueError, "final_div_factor must be at least 1"),
        ({"div_factor": float("nan")}, ValueError, "div_factor must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, said):
    with pytest.raises(error, match=rf"schedules\.one_cycle: .*{said}"):
        schedules.one_cycle(1.0, **{"total_steps": 100, **changes})
