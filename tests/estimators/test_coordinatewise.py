"""Coordinate-wise differences: errors, evaluations, masks, stages, meshes, digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sklearn import datasets

from optlab import estimators
from tests import same_bits
from tests.sharding import on_mesh

plain = estimators.coordinatewise_value_and_grad
staged = estimators.staged_coordinatewise_value_and_grad
RANDOM = np.random.default_rng(0)
D = 50
CURVATURES, POINT = np.linspace(1, 10, D), RANDOM.normal(size=D)
X = RANDOM.normal(size=(8, 6)).astype(np.float32)
PARAMS = [
    {"kernel": 0.5 * RANDOM.normal(size=(6, 8)), "bias": RANDOM.normal(size=8)},
    {"kernel": 0.5 * RANDOM.normal(size=(8, 8)), "scale": np.ones(())},
    {"kernel": 0.5 * RANDOM.normal(size=(8, 2))},
]
PARAMS = jax.tree.map(np.float32, PARAMS)
MASK = jax.tree.map(lambda w: RANDOM.random(w.shape) < 0.3, PARAMS)
CHOSEN = [sum(int(m.sum()) for m in jax.tree.leaves(stage)) for stage in MASK]


def waves(x):
    return jnp.sum(jnp.asarray(CURVATURES, x.dtype) * x**2) / 2 + jnp.sum(jnp.sin(x))


def first(w, x):
    return jnp.tanh(x @ w["kernel"] + w["bias"])


def second(w, h):
    return jnp.tanh(w["scale"] * (h @ w["kernel"]))


def third(w, h):
    return h @ w["kernel"]


def loss_of(h):
    return jnp.mean((h - 1) ** 2)


STAGES = [first, second, third]


def composed(params, x=X):
    h = x
    for stage, own in zip(STAGES, params, strict=True):
        h = stage(own, h)
    return loss_of(h)


def noted(calls, stage):
    """A stage that notes each time it is computed, alone or in a batch."""

    def note(_):
        calls.append(stage.__name__)
        return np.float32(0)

    def run(own, h):
        seen = jnp.sum(h) + sum(jnp.sum(x) for x in jax.tree.leaves(own))
        nothing = jax.ShapeDtypeStruct((), jnp.float32)
        zero = jax.pure_callback(note, nothing, seen, vmap_method="sequential")
        return stage(own, h) + zero

    return run


def relative_error(order, mu):
    with jax.enable_x64(True):
        x = jnp.asarray(POINT)
        got = jax.jit(functools.partial(plain, waves, order=order, chunk=D))(x, mu=mu)
        exact = CURVATURES * POINT + np.cos(POINT)
        assert got.grads.dtype == jnp.float64
        np.testing.assert_allclose(got.value, waves(x), rtol=1e-14)
        return np.linalg.norm(got.grads - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("order", "most", "gain"), [("forward", 6e-3, 2), ("central", 3e-6, 4)]
)
def test_the_error_is_of_first_or_second_order_in_the_step(order, most, gain):
    whole, half = relative_error(order, 1e-2), relative_error(order, 5e-3)
    assert 0.3 * most < whole <= most
    assert whole / half == pytest.approx(gain, rel=0.02)


@pytest.mark.parametrize(
    ("order", "each"), [("forward", 1), ("central", 2)], ids=["forward", "central"]
)
@pytest.mark.parametrize("chunk", [1, 4])
def test_there_is_one_evaluation_an_entry_of_the_mask_and_one_more(order, each, chunk):
    calls = []
    loss = noted(calls, lambda own, h: jnp.sum(own["a"] ** 2) + own["b"])
    mask = {"a": np.arange(12).reshape(3, 4) % 5 != 0, "b": True}
    w = {"a": jnp.ones((3, 4)), "b": jnp.ones(())}
    found = jax.jit(
        lambda w: plain(
            lambda w: loss(w, jnp.zeros(())), w, mask=mask, chunk=chunk, order=order
        )
    )(w)
    np.testing.assert_array_equal(np.asarray(found.grads["a"])[~mask["a"]], 0)
    assert len(calls) == 1 + each * (9 + 1)


@pytest.fixture(scope="module")
def whole():
    return jax.jit(functools.partial(plain, composed))(PARAMS)


@pytest.fixture(scope="module")
def masked():
    return jax.jit(functools.partial(plain, composed, mask=MASK))(PARAMS)


def test_masked_entries_are_zero_and_the_others_are_as_without_a_mask(whole, masked):
    assert masked.value == whole.value
    for got, mask, every in zip(
        *map(jax.tree.leaves, (masked.grads, MASK, whole.grads)), strict=True
    ):
        same_bits.require(got, np.where(mask, every, 0))
    exact = jax.tree.leaves(jax.jit(jax.grad(composed))(PARAMS))
    got, exact = (
        np.concatenate([np.ravel(x) for x in leaves])
        for leaves in (jax.tree.leaves(whole.grads), exact)
    )
    assert got @ exact / np.linalg.norm(got) / np.linalg.norm(exact) > 0.9999


def test_with_nothing_in_the_mask_nothing_is_estimated():
    found = plain(waves, jnp.ones(D), mask=np.zeros(D, bool))
    np.testing.assert_array_equal(found.grads, 0)
    assert found.value == waves(jnp.ones(D))


def test_in_chunks_the_estimate_is_the_same_and_memory_is_theirs(whole):
    got = jax.jit(functools.partial(plain, composed, chunk=50))(PARAMS)
    for a, b in zip(*map(jax.tree.leaves, (got, whole)), strict=True):
        # Losses near 1 are rounded by 1e-7, over a step of 0.005.
        np.testing.assert_allclose(a, b, atol=1e-4)

    def temporary(chunk):
        def run(w):
            return plain(lambda w: jnp.sum(jnp.tanh(w) ** 2), w, chunk=chunk).grads

        shape = jax.ShapeDtypeStruct((32, 32), jnp.float32)
        compiled = jax.jit(run).lower(shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    copy = 4 * 32 * 32
    # Beside the copies there is a list of the entries.
    assert temporary(1) < 16 * copy
    assert temporary(8) < (16 + 6 * 8) * copy
    assert temporary(1024) > 1000 * copy


def test_in_stages_the_estimate_has_the_same_bits(masked):
    got = jax.jit(lambda w: staged(STAGES, w, X, loss_of, mask=MASK))(PARAMS)
    assert got.value == masked.value
    jax.tree.map(np.testing.assert_array_equal, got.grads, masked.grads)
    chunked = jax.jit(
        lambda w: staged(STAGES, tuple(w), X, loss_of, mask=tuple(MASK), chunk=5)
    )(PARAMS)
    for a, b in zip(*map(jax.tree.leaves, (chunked, masked)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_in_stages_none_is_computed_that_lies_before_the_perturbed_entry():
    calls = []
    stages = [noted(calls, stage) for stage in STAGES]
    jax.block_until_ready(
        jax.jit(lambda w: staged(stages, w, X, loss_of, mask=MASK, chunk=4))(PARAMS)
    )
    a, b, c = CHOSEN
    counts = [calls.count(stage.__name__) for stage in STAGES]
    assert counts == [1 + a, 1 + a + b, 1 + a + b + c]
    assert sum(counts) < 0.8 * 3 * (1 + a + b + c)


def test_half_precision_parameters_are_perturbed_in_float32():
    """Near 1 the neighbours of bfloat16 are 0.0078 apart: 0.002 would be lost."""
    w = {"w": jnp.linspace(1.0, 2.0, 8).astype(jnp.bfloat16)}
    step = jnp.asarray(2e-3, jnp.bfloat16)
    np.testing.assert_array_equal(w["w"] + step, w["w"])
    seen = []

    def loss(w):
        seen.append(w["w"].dtype)
        return jnp.sum(w["w"] ** 2)

    found = jax.jit(functools.partial(plain, loss, mu=2e-3))(w)
    assert {*seen} == {jnp.dtype("float32")}
    assert found.grads["w"].dtype == jnp.bfloat16 and found.value.dtype == jnp.float32
    np.testing.assert_allclose(
        found.grads["w"].astype(float), 2 * w["w"].astype(float), rtol=1e-2
    )


def test_what_is_not_finite_stays_with_its_entry_and_empty_leaves_stay_empty():
    w = {"a": jnp.array([1.0, 0.0, 4.0]), "none": jnp.zeros((0, 3)), "s": jnp.ones(())}

    def loss(w):
        return jnp.sum(jnp.sqrt(w["a"])) + jnp.sum(w["none"]) + w["s"]

    found = jax.jit(functools.partial(plain, loss, order="central"))(w)
    np.testing.assert_array_equal(np.isfinite(found.grads["a"]), [True, False, True])
    assert found.grads["none"].shape == (0, 3)
    np.testing.assert_allclose(found.grads["s"], 1, rtol=1e-4)
    assert plain(lambda w: jnp.ones(()), {}).grads == {}


@on_mesh.BOTH
def test_with_a_cut_batch_the_estimate_is_that_of_one_device(axis_type):
    @jax.jit
    def run(params, x):
        return staged(STAGES, params, x, loss_of, mask=MASK, chunk=4)

    wanted = run(PARAMS, X)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
        got = jax.block_until_ready(run(params, x))
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@on_mesh.BOTH
def test_with_cut_weights_the_estimate_lies_as_they_do(axis_type):
    def loss(w):
        return jnp.mean(jnp.sin(3 * w["a"])) + jnp.sum(w["b"] ** 2)

    mask = {"a": RANDOM.random((8, 4)) < 0.5, "b": True}
    run = jax.jit(functools.partial(plain, loss, mask=mask, chunk=3))
    params = {"a": np.ones((8, 4), np.float32), "b": np.ones(3, np.float32)}
    wanted = run(params)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        cut = NamedSharding(mesh, PartitionSpec("data"))
        placed = {**params, "a": jax.device_put(params["a"], cut)}
        got = jax.block_until_ready(run(placed))
        for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        if axis_type == jax.sharding.AxisType.Explicit:
            assert got.grads["a"].sharding.is_equivalent_to(cut, 2)


def test_on_the_digits_it_ends_where_backpropagation_does():
    """650 parameters, 200 steps of 64 examples; 0.5 % of the test images."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    pixels, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels)
    order = np.random.default_rng(1).permutation(len(labels))
    train, test = order[:1397], order[1397:]
    batches = np.random.default_rng(2).choice(train, (200, 64))

    def loss(w, rows):
        logits = pixels[rows] @ w["kernel"] + w["bias"]
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        )

    def trained(grad):
        def step(w, rows):
            return jax.tree.map(lambda x, g: x - 0.5 * g, w, grad(w, rows)), None

        start = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
        w, _ = jax.jit(lambda rows: jax.lax.scan(step, start, rows))(batches)
        guess = jnp.argmax(pixels[test] @ w["kernel"] + w["bias"], axis=1)
        return float(jnp.mean(guess == labels[test]))

    backpropagation = trained(jax.grad(loss))
    differences = trained(
        lambda w, rows: plain(lambda w: loss(w, rows), w, chunk=650).grads
    )
    assert backpropagation > 0.93
    assert abs(differences - backpropagation) <= 0.005


def other_shape(w):
    return [{**w[0], "bias": np.ones(3, bool)}, *w[1:]]


BAD = {
    "mu must be above 0, got 0.0": (ValueError, {"mu": 0.0}),
    "mu must be above 0, got nan": (ValueError, {"mu": np.nan}),
    "chunk must be an integer of 1 or more, got 0": (ValueError, {"chunk": 0}),
    "chunk must be an integer of 1 or more, got 2.0": (ValueError, {"chunk": 2.0}),
    "order must be one of .*, got 'backward'": (ValueError, {"order": "backward"}),
    "only one of them has .'2/kernel'.": (ValueError, {"mask": MASK[:2]}),
    r"leaf '0/bias' has shape \(8,\) and its mask \(3,\)": (
        ValueError,
        {"mask": other_shape(MASK)},
    ),
    "mask of leaf '0/bias' is of int64, not boolean": (
        TypeError,
        {"mask": jax.tree.map(lambda m: m.astype(np.int64), MASK)},
    ),
    "leaf '1/scale' is of int32; only floating": (
        TypeError,
        {"params": [PARAMS[0], {**PARAMS[1], "scale": np.int32(1)}, PARAMS[2]]},
    ),
}
BAD_LOSS = {
    r"one number in float32 or wider, got float32\[2\]": lambda w: jnp.ones(2),
    r"got bfloat16\[\]": lambda w: jnp.ones((), jnp.bfloat16),
    r"got int32\[\]": lambda w: jnp.ones((), jnp.int32),
}


@pytest.mark.parametrize("message", [*BAD, *BAD_LOSS])
def test_bad_input_is_named(message):
    error, changes = BAD.get(message, (TypeError, {}))
    given = {"params": PARAMS, **changes}
    loss = BAD_LOSS.get(message, composed)
    with pytest.raises(error, match=f"^coordinatewise_value_and_grad: .*{message}"):
        plain(loss, **given)
    with pytest.raises(error, match=f"^staged_coordinatewise_.*: .*{message}"):
        staged(STAGES, x=X, loss=BAD_LOSS.get(message, loss_of), **given)


def test_a_mask_that_is_traced_is_refused():
    with pytest.raises(TypeError, match=r"leaf '0/bias' is traced.*close over"):
        jax.jit(lambda mask: plain(composed, PARAMS, mask=mask))(MASK)


@pytest.mark.parametrize(
    ("stages", "params", "error", "said"),
    [
        (STAGES[:2], PARAMS, ValueError, "2 stages and parameters for 3"),
        ([], [], ValueError, "0 stages and parameters for 0"),
        (STAGES, {"a": PARAMS}, TypeError, "params is a list .* got dict"),
        (
            [first, third, second],
            [PARAMS[0], PARAMS[2], PARAMS[1]],
            ValueError,
            r"stage 2 does not take what stage 1 gives, of shape \(8, 2\): ",
        ),
        (STAGES[1:], PARAMS[1:], ValueError, r"stage 0 does not take x, of .*\(8, 6\)"),
    ],
)
def test_stages_that_do_not_compose_are_named(stages, params, error, said):
    with pytest.raises(error, match=f"^staged_coordinatewise_value_and_grad: {said}"):
        staged(stages, params, X, loss_of)
