"""The catalogue: every row builds, finds its place, and is found by its name."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

from optlab import catalog, optimizers, testing

EXTRA = {"value", "grad", "value_fn", "key", "loss_fn", "layer_stats"}
EXTRA |= {"hessian_diag", "noise_pair", "logit_grad_l1", "attn_max_logit"}

# Rooms whose rows are built from defaults, and the first argument there.
MAKERS = {"optimizers": "learning_rate", "wrappers": "inner", "schedules": "peak"}
# Schedules that are given their rates, not a peak.
NO_PEAK = {"refined": "norms", "sampled": "profile", "table": "values"}

every_row = pytest.mark.parametrize("row", catalog.rows(), ids=lambda row: row.name)
MADE = [row for row in catalog.rows() if row.room in (*MAKERS,)]
every_made_row = pytest.mark.parametrize("row", MADE, ids=lambda row: row.name)


def arguments(row):
    return inspect.signature(row.whole().build).parameters


def test_names_are_unique():
    names = [row.name for row in catalog.rows()]
    assert len(set(names)) == len(names)


@every_made_row
def test_a_row_builds_from_its_defaults(row):
    built = row.build(**row.defaults)
    if row.room == "schedules":
        assert jnp.shape(built(0)) == ()
    else:
        params = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}
        more = testing.Subject(row).extra_args(params, params, optax.tree.norm)
        updates, _ = built.update(params, built.init(params), params, **more)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
        assert isinstance(built, optax.GradientTransformationExtraArgs)


@every_row
def test_a_row_lives_in_its_room_under_its_name(row):
    room = importlib.import_module(f"optlab.{row.room}")
    assert getattr(room, row.name, row.build) is row.build
    assert row.build.__name__ == row.name
    assert row.family
    assert row.applies_to in ("any", "matrix")
    assert set(row.needs) <= EXTRA


@every_made_row
def test_defaults_and_static_arguments_are_arguments_of_build(row):
    row = row.whole()
    assert set(row.defaults) <= set(arguments(row))
    assert set(row.static) <= set(arguments(row))
    first = NO_PEAK.get(row.name, MAKERS[row.room])
    assert next(iter(arguments(row))) == first
    assert first in row.defaults


@pytest.mark.parametrize("row", catalog.rows("optimizers"), ids=lambda row: row.name)
def test_all_that_is_not_static_may_be_traced(row):
    # Numbers are the ones to trace, but for those that set shapes or turns; what is no
    # number must be static.
    for name, parameter in arguments(row).items():
        value = row.whole().defaults.get(name, parameter.default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        assert number or value is None or name in row.static, name


@every_row
def test_a_row_cites_its_paper(row):
    paper = row.paper
    assert paper.authors
    assert paper.title
    assert 1940 < paper.year < 2030
    assert paper.url.startswith("https://")


@every_row
def test_a_row_is_found_by_its_name(row):
    assert catalog.get(row.name) is row
    assert catalog.get(row.name, row.room) is row
    assert row in catalog.rows(row.room)


LINKS = [row for row in catalog.rows() if row.link]


@pytest.mark.parametrize("row", LINKS, ids=lambda row: row.name)
def test_a_link_stands_beside_sgd_where_its_row_says(row):
    whole = row.whole()
    assert (whole.name, whole.link, whole.whole()) == (row.name, "", whole)
    tx = whole.build(0.5, **row.defaults)
    own, sgd = row.build(**row.defaults), optimizers.sgd(0.5, momentum=0.9)
    order = {"first": (own, sgd), "last": (sgd, own)}[row.link]
    states = [x.init(jnp.ones(2)) for x in order]
    assert jax.tree.structure(tx.init(jnp.ones(2))) == jax.tree.structure((*states,))


def test_on_a_mesh_a_row_gets_other_arguments():
    mesh = jax.make_mesh((8,), ("data",))
    changes = catalog.get("muon").on_mesh(mesh, "data")
    assert set(changes) == {"orthogonalize"}
    assert changes["orthogonalize"].axes == ("data",)


@pytest.mark.parametrize(
    ("name", "room", "said"),
    [
        ("muno", None, r"no row named 'muno'; did you mean muon"),
        ("admaw", "optimizers", r"no optimizer named 'admaw'; did you mean adamw"),
        ("muon", "schedules", r"no schedule named 'muon'; did you mean"),
        ("krun", "aggregation", r"no aggregation named 'krun'; did you mean krum"),
        ("zzzz", "schedules", r"did you mean constant, cosine, "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, room, said):
    with pytest.raises(ValueError, match=said):
        catalog.get(name, room)


def test_an_unknown_room_is_answered_with_the_rooms_there_are():
    with pytest.raises(
        ValueError, match=r"no room 'kitchen'; there are \['aggregation'"
    ):
        catalog.rows("kitchen")


def test_the_table_has_one_line_for_each_row():
    lines = catalog.markdown_table().splitlines()
    assert len(lines) == len(catalog.rows()) + 2
    for line, row in zip(lines[2:], catalog.rows(), strict=True):
        room = f"{row.room}, a link" if row.link else row.room
        assert line.startswith(f"| `{row.name}` | {room} | {row.family} | [")
        assert line.endswith(f"]({row.paper.url}) |")
        assert line.count("|") == 5
