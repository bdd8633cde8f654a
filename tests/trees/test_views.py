"""Paths, matrix views of real Flax models, round trips and stacks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec

from optlab import trees
from optlab.trees import MatrixView

DENSE = MatrixView((0,), (1,))
STACKED = MatrixView((1,), (2,))
HEADS_IN = MatrixView((0,), (1, 2))
HEADS_OUT = MatrixView((0, 1), (2,))


class Layer(nnx.Module):
    """A transformer layer with the usual parts, d = 6, 2 heads of 4."""

    def __init__(self, rngs):
        self.attn = nnx.MultiHeadAttention(
            num_heads=2, in_features=6, qkv_features=8, decode=False, rngs=rngs
        )
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.up = nnx.Linear(6, 12, rngs=rngs)
        self.down = nnx.Linear(12, 6, use_bias=False, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(10, 6, rngs=rngs)
        self.conv = nnx.Conv(6, 4, (3, 3), rngs=rngs)
        self.batch_norm = nnx.BatchNorm(6, rngs=rngs)
        self.blocks = nnx.List([Layer(rngs)])
        self.head = nnx.Linear(6, 10, rngs=rngs)


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(y)
        y = nn.BatchNorm(use_running_average=True)(nn.Dense(12)(y))
        return x + nn.Dense(6, use_bias=False)(y), None


class LinenModel(nn.Module):
    layers: int = 0

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(10, 6)(tokens)
        if self.layers:
            scanned = nn.scan(
                LinenLayer,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            x, _ = scanned()(x, None)
        else:
            x, _ = LinenLayer()(x, None)
            x = nn.Conv(6, (3,))(x)
        return nn.Dense(10, name="lm_head")(x)


def abstract(make):
    """The parameters of a model, shapes only: nothing is initialised or compiled."""
    return nnx.state(nnx.eval_shape(make), nnx.Param)


@functools.cache
def nnx_state():
    return abstract(lambda: Model(nnx.Rngs(0)))


@functools.cache
def linen_params(layers=0):
    tokens = jnp.ones((1, 4), int)
    init = functools.partial(LinenModel(layers).init, jax.random.key(0))
    return jax.eval_shape(init, tokens)["params"]


def named(views):
    """Returns the matrices among the views by path."""
    flat = jax.tree_util.tree_leaves_with_path(
        views, is_leaf=lambda x: isinstance(x, MatrixView)
    )
    return {trees.path_string(path): view for path, view in flat}


def leaf(shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


ROUTING = """\
path                        shape         group   view
batch_norm/bias             (6,)          rest    -
batch_norm/scale            (6,)          rest    -
blocks/0/attn/key/bias      (2, 4)        rest    -
blocks/0/attn/key/kernel    (6, 2, 4)     matrix  1 x (6, 8): in (0,), out (1, 2)
blocks/0/attn/out/bias      (6,)          rest    -
blocks/0/attn/out/kernel    (2, 4, 6)     matrix  1 x (8, 6): in (0, 1), out (2,)
blocks/0/attn/query/bias    (2, 4)        rest    -
blocks/0/attn/query/kernel  (6, 2, 4)     matrix  1 x (6, 8): in (0,), out (1, 2)
blocks/0/attn/value/bias    (2, 4)        rest    -
blocks/0/attn/value/kernel  (6, 2, 4)     matrix  1 x (6, 8): in (0,), out (1, 2)
blocks/0/down/kernel        (12, 6)       matrix  1 x (12, 6): in (0,), out (1,)
blocks/0/norm/bias          (6,)          rest    -
blocks/0/norm/scale         (6,)          rest    -
blocks/0/up/bias            (12,)         rest    -
blocks/0/up/kernel          (6, 12)       matrix  1 x (6, 12): in (0,), out (1,)
conv/bias                   (4,)          rest    -
conv/kernel                 (3, 3, 6, 4)  matrix  1 x (54, 4): in (0, 1, 2), out (3,)
embed/embedding             (10, 6)       rest    -
head/bias                   (10,)         rest    -
head/kernel                 (6, 10)       rest    -"""


def test_the_routing_table_of_an_nnx_model():
    assert trees.routing_table(nnx_state()) == ROUTING


def test_the_routing_table_takes_given_views_and_shows_splits():
    params = {"qkv": leaf((2, 6, 12))}
    view = MatrixView((1,), (2,), split=(4, 4, 4))
    table = trees.routing_table(params, {"qkv": view})
    assert table.endswith("matrix  2 x (6, 12): in (1,), out (2,), split (4, 4, 4)")


def test_a_linen_model():
    attention = "LinenLayer_0/MultiHeadDotProductAttention_0"
    assert named(trees.matrix_views(linen_params(), strict=True)) == {
        f"{attention}/query/kernel": HEADS_IN,
        f"{attention}/key/kernel": HEADS_IN,
        f"{attention}/value/kernel": HEADS_IN,
        f"{attention}/out/kernel": HEADS_OUT,
        "LinenLayer_0/Dense_0/kernel": DENSE,
        "LinenLayer_0/Dense_1/kernel": DENSE,
        "Conv_0/kernel": HEADS_OUT,  # (width, in, out), read like (heads, dim, d)
    }


def shifted(view):
    """The view of a leaf that has got one more leading axis."""
    return MatrixView(
        tuple(axis + 1 for axis in view.reduction),
        tuple(axis + 1 for axis in view.output),
    )


def test_scanning_linen_layers_adds_a_batch_axis_to_every_view():
    scanned = named(trees.matrix_views(linen_params(3), strict=True))
    single = named(trees.matrix_views(linen_params()))
    del single["Conv_0/kernel"]
    want = {
        path.replace("LinenLayer_0", "ScanLinenLayer_0"): shifted(view)
        for path, view in single.items()
    }
    assert scanned == want


def test_stacking_nnx_layers_adds_a_batch_axis_to_every_view():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stacked(rngs):
        return Layer(rngs)

    params = abstract(lambda: stacked(nnx.Rngs(0)))
    single = nnx_state()["blocks"][0]
    got = named(trees.matrix_views(params, strict=True))
    assert got == {
        path: shifted(view) for path, view in named(trees.matrix_views(single)).items()
    }
    assert len(got) == 6


def test_dictionaries_frozen_ones_states_and_abstract_trees_route_alike():
    state = nnx_state()
    pure = nnx.to_pure_dict(state)
    want = named(trees.matrix_views(state))
    assert len(want) == 7
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    for params in (pure, freeze(pure), arrays, {"params": pure}):
        views = trees.matrix_views(params)
        assert {p.removeprefix("params/"): v for p, v in named(views).items()} == want
        labels = trees.labels(views)
        assert jax.tree.structure(labels) == jax.tree.structure(params)
        assert jax.tree.leaves(labels).count("matrix") == 7


def test_the_views_of_tracers_are_the_views_of_arrays():
    params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    seen = []
    jax.make_jaxpr(lambda p: seen.append(trees.matrix_views(p, strict=True)))(params)
    assert seen == [trees.matrix_views(params)]


ROUTES = [
    # Raw parameters of a mixture of experts: (experts, in, out), also scan-stacked.
    ("experts/w1", (8, 6, 12), STACKED),
    ("layers/moe/expert_up/kernel", (3, 8, 6, 12), MatrixView((2,), (3,))),
    ("moe/kernel", (8, 6, 12), STACKED),
    ("mlp/w1", (6, 12), DENSE),
    ("mlp/up_proj", (6, 12), DENSE),
    ("attention/lora_a", (6, 2), DENSE),
    # Heads behind q_proj and o_proj, and plain projections that are scan-stacked.
    ("attn/q_proj/kernel", (6, 2, 4), HEADS_IN),
    ("attn/key/kernel", (3, 6, 2, 4), MatrixView((1,), (2, 3))),
    # One fused projection to (3, heads, head_dim): all of these are columns.
    ("attn/qkv/kernel", (6, 3, 2, 4), MatrixView((0,), (1, 2, 3))),
    ("attn/qkv/kernel", (5, 6, 3, 2, 4), MatrixView((1,), (2, 3, 4))),
    ("attn/c_attn/kernel", (6, 24), DENSE),
    ("Conv_0/kernel", (3, 5, 6, 4), MatrixView((0, 1, 2), (3,))),
    ("conv1/kernel", (3, 6, 4), HEADS_OUT),
    # The rest.
    ("wte/embedding", (10, 6), None),
    ("wpe", (10, 6), None),
    ("pos_embedding", (1, 10, 6), None),
    ("patch_embed/kernel", (4, 4, 3, 6), None),
    ("token_embedder/weight", (10, 6), None),
    ("cls_token", (1, 1, 6), None),
    ("cls", (1, 1, 6), None),
    ("mask_tokens", (4, 6), None),
    ("lm_head/kernel", (6, 10), None),
    ("classifier/kernel", (6, 10), None),
    ("logits/kernel", (6, 10), None),
    ("unembed/kernel", (6, 10), None),
    ("layers/norm/scale", (3, 6), None),
    ("layers/ln_1/weight", (3, 6), None),
    ("layers/LayerNorm_0/gamma", (3, 6), None),
    ("layers/up/bias", (3, 12), None),
    ("depthwise_conv/kernel", (3, 3, 1, 6), None),
    ("temperature", (), None),
    ("up/kernel", (6,), None),
    # Names that only resemble those of the rest.
    ("token_mixing/kernel", (6, 12), DENSE),
    ("heads/kernel", (6, 12), DENSE),
    ("normaliser/kernel", (6, 12), DENSE),
    ("posterior/kernel", (6, 12), DENSE),
]


def nested(path, value):
    for part in reversed(path.split("/")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("path", "shape", "want"), ROUTES)
def test_a_leaf_is_routed_by_name_and_shape(path, shape, want):
    (view,) = jax.tree.leaves(
        trees.matrix_views(nested(path, leaf(shape))),
        is_leaf=lambda x: x is None or isinstance(x, MatrixView),
    )
    assert view == want


def test_projections_stacked_over_layers_are_told_from_heads_by_their_neighbour():
    def views(out):
        attn = {name: {"kernel": leaf((3, 6, 8))} for name in ("query", "key", "value")}
        return trees.matrix_views({**attn, "out": {"kernel": leaf(out)}})

    stacked = views((3, 8, 6))  # Dense layers with a leading axis of layers
    assert stacked["query"]["kernel"] == stacked["out"]["kernel"] == STACKED
    heads = views((6, 8, 3))  # three wide, six heads
    assert heads["query"]["kernel"] == HEADS_IN
    assert heads["out"]["kernel"] == HEADS_OUT


def test_leaves_without_a_module_are_no_neighbours():
    params = {"attn": {"query": {"kernel": leaf((6, 2, 4))}}, "temperature": leaf(())}
    found = trees.matrix_views(params)
    assert found["attn"]["query"]["kernel"] == HEADS_IN
    assert found["temperature"] is None


AMBIGUOUS = [
    ("mlp/up", (6, 12), "the name tells no role"),
    ("table", (6, 12), "the name tells no role"),
    ("attn/qkv/kernel", (6, 24), "a fused projection"),
    ("attn/qkv/kernel", (6, 3, 2, 4), "a fused projection"),
    ("DenseGeneral_0/kernel", (6, 2, 4), "which axes does the layer sum over"),
    ("query/kernel", (3, 6, 6), r"a stack of \(in, out\), or heads"),
    ("stem/kernel", (3, 3, 6, 4), "a convolution, or a stack"),
    ("conv/kernel", (5, 3, 3, 6, 4), "a convolution, or a stack"),
]


@pytest.mark.parametrize(("path", "shape", "doubt"), AMBIGUOUS)
def test_strict_raises_on_an_ambiguous_leaf_until_a_rule_decides(path, shape, doubt):
    params = nested(path, leaf(shape))
    assert jax.tree.leaves(trees.labels(trees.matrix_views(params))) == ["matrix"]
    with pytest.raises(ValueError, match=rf"leaf '{path}' of shape .*{doubt}"):
        trees.matrix_views(params, strict=True)
    for view in (None, MatrixView((-2,), (-1,))):
        views = trees.matrix_views(params, rules=[(f"^{path}$", view)], strict=True)
        assert len(named(views)) == (view is not None)


def test_strict_raises_on_tied_weights():
    table = jnp.ones((10, 6))
    params = {"embed": {"embedding": table}, "decoder": {"kernel": table}}
    with pytest.raises(ValueError, match="'decoder/kernel' and 'embed/embedding' are"):
        trees.matrix_views(params, strict=True)
    trees.matrix_views(params)
    # Equal values are not tied, nor are vectors, which nobody reads as matrices.
    bias = jnp.ones(3)
    trees.matrix_views(
        {"a": {"kernel": jnp.ones((2, 2)), "bias": bias}, "b": {"bias": bias}},
        strict=True,
    )


def test_nnx_keeps_shared_weights_as_one_leaf():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(4, 4, rngs=rngs)
            self.again = self.up

    params = abstract(lambda: Tied(nnx.Rngs(0)))
    assert len(named(trees.matrix_views(params, strict=True))) == 1


def test_the_first_rule_that_is_found_in_the_path_decides():
    params = {"a": {"kernel": leaf((4, 6))}, "b": {"kernel": leaf((4, 6))}}
    rules = [("^a/", None), ("kernel", MatrixView((-1,), (-2,)))]
    views = trees.matrix_views(params, rules=rules)
    assert named(views) == {"b/kernel": MatrixView((1,), (0,))}


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (MatrixView((0,), (2,)), "does not fit"),
        (MatrixView((0,), (-3,)), "does not fit"),
        (MatrixView((0,), (0,)), "does not fit"),
        (MatrixView((1,), (-1,)), "does not fit"),
        (MatrixView((), (1,)), "does not fit"),
        (MatrixView((0,), ()), "does not fit"),
        (MatrixView((0,), (1,), split=(2, 2)), r"split=\(2, 2\)"),
        (MatrixView((0,), (1,), split=(7, -1)), r"split=\(7, -1\)"),
        (MatrixView((0,), (1,), split=(6, 0)), r"split=\(6, 0\)"),
    ],
)
def test_a_view_that_does_not_fit_is_refused_wherever_it_is_used(view, said):
    with pytest.raises(ValueError, match=rf"leaf 'kernel' has shape \(4, 6\).*{said}"):
        trees.matrix_views({"kernel": leaf((4, 6))}, rules=[("", view)])
    with pytest.raises(ValueError, match=rf"to_matrices: .*{said}"):
        trees.to_matrices(jnp.ones((4, 6)), view)
    with pytest.raises(ValueError, match=rf"from_matrices: .*{said}"):
        trees.from_matrices([jnp.ones((1, 4, 6))], view, (4, 6))


SHAPE = (2, 3, 4, 5)
VIEWS = [
    MatrixView((reduction,), (output,))
    for reduction, output in itertools.permutations(range(-4, 0), 2)
] + [
    MatrixView((0, 1, 2), (3,)),
    MatrixView((3,), (2, 1, 0)),
    MatrixView((1,), (2, 3), split=(8, 1, 11)),
    MatrixView((-2, 0), (-1,), split=(5,)),
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_matrices_go_back_to_where_they_came_from(view):
    x = np.arange(120.0).reshape(SHAPE)
    matrices = trees.to_matrices(jnp.asarray(x), view)
    np.testing.assert_array_equal(trees.from_matrices(matrices, view, SHAPE), x)
    # Against NumPy: batch, rows and columns in this order.
    named_axes = [axis % 4 for axis in (*view.reduction, *view.output)]
    batch = [axis for axis in range(4) if axis not in named_axes]
    rows = int(np.prod([SHAPE[axis] for axis in view.reduction]))
    columns = int(np.prod([SHAPE[axis] for axis in view.output]))
    want = np.transpose(x, (*batch, *named_axes)).reshape(-1, rows, columns)
    np.testing.assert_array_equal(jnp.concatenate(matrices, axis=-1), want)
    assert [m.shape[-1] for m in matrices] == list(view.split or (columns,))


def test_empty_arrays_make_the_round_trip():
    for shape, view in (((0, 3), DENSE), ((2, 0, 3), HEADS_IN), ((3, 0), DENSE)):
        (stack,) = trees.to_matrices(jnp.ones(shape), view)
        assert trees.from_matrices([stack], view, shape).shape == shape


@pytest.mark.parametrize(
    ("shape", "view", "axis", "spec"),
    [
        ((16, 8, 2), HEADS_IN, 1, (None, None, "x")),
        ((8, 2, 16), HEADS_OUT, 0, (None, "x", None)),
        ((2, 8, 16), HEADS_OUT, 1, (None, "x", None)),
        ((16, 2, 2), HEADS_IN, 0, (None, "x", None)),
        ((3, 3, 8, 4), MatrixView((0, 1, 2), (3,)), 2, (None, "x", None)),
        ((8, 4, 6), STACKED, 0, ("x", None, None)),
    ],
)
def test_on_explicit_axes_merged_axes_keep_their_placement(shape, view, axis, spec):
    mesh = jax.make_mesh((8,), ("x",))
    place = PartitionSpec(*("x" if i == axis else None for i in range(len(shape))))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, place))

    @jax.jit
    def there_and_back(x):
        (stack,) = trees.to_matrices(x, view)
        back = trees.from_matrices([stack], view, x.shape, jax.typeof(x).sharding)
        return stack, back

    stack, back = there_and_back(sharded)
    assert stack.sharding.spec == PartitionSpec(*spec)
    assert back.sharding.spec == sharded.sharding.spec
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(stack, trees.to_matrices(jnp.asarray(x), view)[0])


def test_paths_read_like_attributes_and_indices():
    leaves = jax.tree_util.tree_leaves_with_path(nnx_state())
    paths = [trees.path_string(path) for path, _ in leaves]
    assert "blocks/0/attn/query/kernel" in paths
    named_leaves = jax.tree_util.tree_leaves_with_path({"a": (1, {"value": 2})})
    assert [trees.path_string(p) for p, _ in named_leaves] == ["a/0", "a/1/value"]
    assert trees.path_string(()) == ""
