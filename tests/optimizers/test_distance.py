"""What every method keeps whose rate is an estimate of the distance to go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import catalog, optimizers, schedules
from tests.conformance import references
from tests.optimizers import bowl, trajectories

# Others of the family estimate no distance: test_dog.py, test_momo.py and
# tests/wrappers/test_mechanic.py hold them to rules of their own.
METHODS = [
    row.build
    for row in catalog.rows()
    if row.family == "tuning free" and "d0" in (row.build.__kwdefaults__ or {})
]
TREE = {"a": (4, 6), "b": (5,)}
START = {name: np.ones(shape, np.float32) for name, shape in TREE.items()}
ZEROS = jax.tree.map(np.zeros_like, START)

every_method = pytest.mark.parametrize("make", METHODS, ids=lambda f: f.__name__)


def tree_gradients(steps):
    """Gradients of one sign, so that the estimate grows."""
    pairs = (trajectories.gradients(shape, steps) for shape in TREE.values())
    return [
        {name: np.abs(g) for name, g in zip(TREE, pair, strict=True)}
        for pair in zip(*pairs, strict=True)
    ]


# The estimate ends too far or steps do not shrink: the factor has to fall.
FALLING = (optimizers.dadapt_adan, optimizers.dadapt_lion)


@every_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_starts_after_a_gradient_of_zero_and_d_never_falls(make, dtype):
    rate = schedules.linear(1.0, total_steps=1000) if make in FALLING else 1.0
    x, _, d = bowl.descend(make(rate), dtype, watch=lambda state: state.d, zeros=1)
    assert bowl.loss(x) < 1e-2
    # None at first, then d0.
    np.testing.assert_array_equal(d[:2], np.float32([0, 1e-6]))
    assert (np.diff(d) >= 0).all() and d.dtype == "float32"
    # 3 is how far it is.
    assert 0.3 < d[-1] < (125 if make is optimizers.dadapt_adan else 10)


@every_method
def test_a_first_gradient_of_zero_costs_a_step_and_nothing_else(make):
    run = functools.partial(trajectories.parameters, params=START, compiled=True)
    settings = {"weight_decay": 0.1, "decoupled": True, "bias_correction": True}
    known = make.__kwdefaults__
    settings = {name: value for name, value in settings.items() if name in known}
    if "decoupled" not in known:
        settings.pop("weight_decay", None)
    make, grads = functools.partial(make, d0=0.1, **settings), tree_gradients(4)
    want, fresh = run(make(), grads=grads)
    # Then a gradient at a rate of zero.
    rate = schedules.table([1.0, 0.0, 1.0])
    got, state = run(make(rate), grads=[ZEROS, grads[0], *grads])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), got[2:], want
    )
    assert (int(state.count), int(state.rate.count)) == (4, 6)
    np.testing.assert_allclose(state.d, fresh.d, rtol=1e-5)
    assert fresh.d > 0.1


@every_method
def test_the_limit_on_growth_holds(make):
    _, _, d = bowl.descend(make(growth_rate=1.1), watch=lambda state: state.d, steps=60)
    ratios = d[1:] / d[:-1]
    # Prodigy's first estimate above d0 is free of the limit.
    free = [] if make is not optimizers.prodigy else np.flatnonzero(ratios > 1)[:1]
    assert 1.09 < np.delete(ratios, free).max() < 1.1 * (1 + 1e-6)


@every_method
def test_a_nan_in_one_leaf_leaves_d_and_the_other_leaf(make):
    grads = tree_gradients(3)
    grads[1]["b"] = np.full(5, np.nan, np.float32)
    points, state = trajectories.parameters(make(d0=0.1), START, grads, compiled=True)
    assert state.d >= np.float32(0.1) and np.isfinite(points[-1]["a"]).all()


def estimated(place=None):
    """Six steps of all methods, from d0 = 0.1, the arrays cut as `place` says."""
    methods = {make.__name__: make(d0=0.1) for make in METHODS}

    @jax.jit
    def start(x):
        return {name: (x, tx.init(x)) for name, tx in methods.items()}

    @jax.jit
    def step(points, g):
        def moved(tx, x, state):
            updates, state = tx.update(g, state, x)
            return optax.apply_updates(x, updates), state

        return {name: moved(tx, *points[name]) for name, tx in methods.items()}

    kernel = np.ones((8, 16), np.float32)
    points = jax.block_until_ready(start({"kernel": jax.device_put(kernel, place)}))
    for t in range(6):
        g = {"kernel": jax.device_put((1 + t) * kernel, place)}
        points = jax.block_until_ready(step(points, g))
    ends = {name: (x["kernel"], state.d) for name, (x, state) in points.items()}
    return jax.tree.map(np.asarray, ends)


@pytest.fixture(scope="module")
def on_one_device():
    return estimated()


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_meshes_equal_one_device_while_d_grows(kind, on_one_device):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        ends = estimated(NamedSharding(mesh, PartitionSpec(None, "devices")))
    for name, got in ends.items():
        want = on_one_device[name]
        assert want[1] > 0.1, name
        for a, b in zip(got, want, strict=True):
            # Estimates grow by powers of ten, and so does what is rounded.
            np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=name)


@every_method
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"d0": 0.0}, r"{}: d0 must be above 0, got 0\.0"),
        ({"growth_rate": 0.9}, r"{}: growth_rate must be 1 or more, got 0\.9"),
        ({"weight_decay": -1.0}, r"{}: weight_decay must be 0 or more, got -1\.0"),
        (
            {"learning_rate": schedules.per_group({"a": 1.0}, lambda tree: "a")},
            "{}: learning_rate must be one for all leaves, not one a group",
        ),
    ],
    ids=["d0", "growth_rate", "weight_decay", "learning_rate"],
)
def test_what_makes_no_sense_is_refused_by_name(make, settings, said):
    with pytest.raises(ValueError, match=said.format(make.__name__)):
        make(**settings)


@every_method
def test_missing_parameters_are_named(make):
    tx = make()
    said = rf"{make.__name__}: needs the parameters: update\(\.\.\., params\)"
    with pytest.raises(TypeError, match=said):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


FORTY = [
    (optimizers.prodigy, {"slice_p": 2}),
    (optimizers.prodigy, {"bias_correction": True, "d_coef": 2.0, "weight_decay": 0.1}),
    (
        optimizers.prodigy,
        {"growth_rate": 1.3, "b3": 0.9, "d0": 1e-3, "learning_rate": 0.5},
    ),
    (optimizers.dadapt_adam, {"growth_rate": 2.0, "weight_decay": 0.1}),
    (
        optimizers.dadapt_adam,
        {"bias_correction": True, "decoupled": True, "weight_decay": 0.1},
    ),
    (optimizers.dadapt_adan, {"weight_decay": 0.0}),
    (optimizers.dadapt_adan, {"growth_rate": 1.5, "learning_rate": 0.5}),
    (optimizers.dadapt_lion, {"weight_decay": 0.1}),
    (optimizers.dadapt_sgd, {"growth_rate": 2.0, "weight_decay": 0.1}),
    (optimizers.dadapt_sgd, {"momentum": 0.9, "learning_rate": 0.5, "d0": 1e-4}),
]


@pytest.mark.parametrize(
    ("make", "settings"), FORTY, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_forty_steps_in_which_d_grows_by_powers_of_ten(make, settings):
    with jax.enable_x64(True):
        tx = make(**settings)
        x, points = jnp.array(bowl.START), []
        state, update = tx.init(x), jax.jit(tx.update)
        for _ in range(40):
            updates, state = update(x, state, x)
            x = x + updates
            points.append(np.asarray(x))
        d = float(state.d)
    grads = [np.array(bowl.START), *points[:-1]]
    known = {"learning_rate": 1.0, **make.__kwdefaults__, **settings}
    want = references.REFERENCES[make.__name__](known)(grads[0], grads)
    # Prodigy's subtracts parameters to see how far they have come: 1e-16 in 1e-6.
    np.testing.assert_allclose(points, want, atol=1e-9)
    assert d > 300 * known["d0"]


@pytest.mark.parametrize(
    ("make", "theirs"),
    [
        (optimizers.prodigy, optax.contrib.prodigy),
        (optimizers.dadapt_adam, optax.contrib.dadapt_adamw),
    ],
)
def test_optax_dies_of_a_first_gradient_of_zero(make, theirs):
    for tx, survives in ((make(), True), (theirs(1.0), False)):
        grads = [ZEROS, *tree_gradients(2)]
        points, _ = trajectories.parameters(tx, START, grads, compiled=True)
        assert np.isfinite(points[-1]["a"]).all() == survives
