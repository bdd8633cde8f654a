"""Exponentiated gradient against the authors' numbers, and signs that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, schedules
from tests.optimizers import fixture, trajectories

PUBLISHED = {
    "momentum": (
        optimizers.exponentiated_gradient,
        {"momentum": 0.9},
        [
            [[0.9900498337, -1.960397347], [0.4852227668, 2.882368317]],
            [[0.9910403788, -1.906267574], [0.4629449268, 2.64484454]],
            [[0.9869854315, -1.858829857], [0.4572855805, 2.305303386]],
        ],
    ),
    "decay": (
        optimizers.exponentiated_gradient,
        {"weight_decay": 0.1, "steps": 1},
        [[[0.9801986733, -1.940891067], [0.4803947196, 2.853688274]]],
    ),
    "adamw": (
        optimizers.exponentiated_adamw,
        {"weight_decay": 0.1},
        [
            [[0.8957890528, -1.791578097], [0.4478945234, 2.687367138]],
            [[0.8915109988, -1.615797359], [0.4024103025, 2.40740046]],
            [[0.8673086294, -1.488427911], [0.3917647211, 2.156385731]],
        ],
    ),
}
BOTH = (optimizers.exponentiated_gradient, optimizers.exponentiated_adamw)
both = pytest.mark.parametrize("make", BOTH, ids=["gradient", "adamw"])


@pytest.mark.parametrize("case", PUBLISHED)
def test_equals_the_authors_numbers(case):
    make, settings, want = PUBLISHED[case]
    got = fixture.run(make, **settings)
    np.testing.assert_allclose(got, want, rtol=fixture.DIGITS)


def test_the_exponent_has_the_sign_of_the_weight_and_not_the_weight():
    w, g = np.array([0.5, -0.5, 2.0]), np.array([0.1, 0.1, -0.2])
    tx = optimizers.exponentiated_gradient(1.0)
    with jax.enable_x64(True):
        updates, _ = tx.update(jnp.asarray(g), tx.init(jnp.asarray(w)), jnp.asarray(w))
        got = w + np.asarray(updates)
    right, wrong = [0.452418709, -0.552585459, 2.4428055163], w * np.exp(-w * g)
    np.testing.assert_allclose(got, right, rtol=1e-8)
    np.testing.assert_allclose(wrong, [0.475615, -0.525636, 2.983649], rtol=1e-6)


def test_the_first_gradient_is_not_dampened():
    grads = trajectories.gradients((3,), steps=2)
    tx = optimizers.exponentiated_gradient(0.1, momentum=0.5, dampening=0.25)
    w = jnp.array([1.0, -2.0, 3.0])
    (first, second), _ = trajectories.parameters(tx, w, grads)
    s = np.sign(w)
    np.testing.assert_allclose(first, w * np.exp(-0.1 * s * grads[0]), rtol=1e-6)
    m = 0.5 * grads[0] + 0.75 * grads[1]
    np.testing.assert_allclose(second, first * np.exp(-0.1 * s * m), rtol=1e-6)


# Of parameters, and of gradients.
DTYPES = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "bfloat16"),
    ("float16", "float32"),
]


@pytest.mark.parametrize(
    ("make", "steps"), [(BOTH[0], 10_000), (BOTH[1], 2_000)], ids=["gradient", "adamw"]
)
def test_no_sign_turns_in_thousands_of_steps_of_any_size(make, steps):
    entries = np.array([1.0, -1.0, 1e-3, -1e-3, 1.99, -1.99, 0.0, 6e4])
    start = [jnp.asarray(entries, dtype) for dtype, _ in DTYPES]
    settings = {} if make is optimizers.exponentiated_adamw else {"momentum": 0.5}
    tx = make(0.3, weight_decay=0.5, **settings)

    def step(carry, key):
        w, state = carry
        sizes, signs = jax.random.split(key)
        # From steps in proportion to steps to one bound or the other; in float16, too.
        size = 10 ** jax.random.uniform(sizes, (8,), minval=-4, maxval=30)
        g = size * jax.random.rademacher(signs, (8,))
        halves = jnp.clip(g, -6e4, 6e4)
        g = [(halves if d == "float16" else g).astype(d) for _, d in DTYPES]
        change, state = tx.update(g, state, w)
        w = optax.apply_updates(w, change)
        return (w, state), [jnp.sign(x) for x in w]

    keys = jax.random.split(jax.random.key(0), steps)
    run = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), keys))
    (end, _), signs = run()
    for seen, last in zip(signs, end, strict=True):
        np.testing.assert_array_equal(np.unique(seen, axis=0), [np.sign(entries)])
        assert np.isfinite(last.astype(jnp.float32)).all() and last[6] == 0


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_step_down_as_far_as_it_goes_leaves_what_the_dtype_can_tell(make, dtype):
    tx = make(1e4, weight_decay=0.0, max_exponent=1e3)
    # All numbers of bfloat16 in [1, 2), some of the others, and next to nothing.
    w = jnp.append(jnp.linspace(1, 2, 513), 3 * jnp.finfo(dtype).tiny).astype(dtype)
    g = jnp.full(w.shape, 6e4, dtype)
    updates, _ = tx.update(g, tx.init(w), w)
    left = (w + updates).astype(jnp.float32)
    unit = float(jnp.finfo(dtype).eps)
    assert (left > 0).all() and (left[:-1] <= 2 * unit).all()


@both
def test_the_rate_is_in_the_state_and_follows_its_schedule_from_zero(make):
    tx = make(schedules.linear(0.5, total_steps=2), weight_decay=0.0)
    points, state = trajectories.parameters(tx, jnp.ones(1), [jnp.ones(1)] * 3)
    # Adam's direction of a gradient of ones is one.
    want = np.exp([-0.5, -0.75, -0.75])
    # In float32 its 1 - b2^t is off by 1e-5.
    np.testing.assert_allclose(np.ravel(points), want, rtol=2e-5)
    assert trajectories.rates(state) == [0.0]


@both
def test_only_leaves_of_the_mask_decay(make):
    w = {"in": jnp.array([2.0, -2.0]), "out": jnp.array([2.0])}
    zero = jax.tree.map(jnp.zeros_like, w)
    tx = make(0.5, weight_decay=0.5, mask={"in": True, "out": False})
    updates, _ = tx.update(zero, tx.init(w), w)
    factor = 0.75 if make is optimizers.exponentiated_adamw else np.exp(-0.25)
    change = 2 * (factor - 1)
    np.testing.assert_allclose(updates["in"], [change, -change], rtol=1e-6)
    np.testing.assert_array_equal(updates["out"], 0)


def test_decay_of_more_than_everything_keeps_the_sign():
    tx = optimizers.exponentiated_adamw(2.0, weight_decay=1.0)
    w = jnp.array([2.0, -2.0])
    updates, _ = tx.update(0 * w, tx.init(w), w)
    np.testing.assert_allclose(w + updates, w * np.exp(-10), rtol=1e-2)


@pytest.mark.parametrize(
    ("make", "settings", "want"),
    [(BOTH[0], {}, 0), (BOTH[0], {"momentum": 0.9}, 4), (BOTH[1], {}, 8)],
)
def test_bytes_a_parameter(make, settings, want):
    got = trajectories.state_bytes(make(0.1, **settings), jnp.ones((64, 64)))
    assert got == want * 64**2


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (BOTH[0], {"momentum": 1.0}, r"momentum must be at least 0 .*got 1\.0"),
        (BOTH[0], {"momentum": 0.9, "dampening": 2.0}, r"dampening must be 0 to 1, g"),
        (BOTH[0], {"weight_decay": -0.1}, r"gradient: weight_decay must .*got -0\.1"),
        (BOTH[0], {"max_exponent": 0}, "max_exponent must be above 0, got 0"),
        (BOTH[1], {"b2": 1.5}, r"exponentiated_adamw: b2 must be .*got 1\.5"),
        (BOTH[1], {"eps": -1e-8}, "exponentiated_adamw: eps must be 0 or more"),
        (BOTH[1], {"max_exponent": -1.0}, r"adamw: max_exponent must .*got -1\.0"),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_what_makes_no_sense_is_refused_by_name(make, settings, said):
    with pytest.raises(ValueError, match=said):
        make(0.1, **settings)


@both
def test_missing_parameters_are_named(make):
    tx = make(0.1)
    said = rf"{make.__name__}: needs the parameters: update\(\.\.\., params\)"
    with pytest.raises(TypeError, match=said):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
