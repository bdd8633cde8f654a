"""The house keeps its own rules: the ladder, the names, one path, one table."""

import inspect
import pathlib
import subprocess
import sys
from collections import defaultdict

import pytest

import optlab
from docs import tables
from optlab import catalog
from tests import architecture, public_names

ROOT = pathlib.Path(__file__).parents[1]

CORE = """
class ScaleByMuonState(NamedTuple):
    count: jax.Array

def scale_by_muon(b1=0.95):
    return b1
"""

# A small house without a fault.
TOY = {
    "__init__.py": "from optlab import kernels, optimizers",
    "trees.py": "import jax",
    "kernels/__init__.py": "from ._root import root as root",
    "kernels/_root.py": "import jax\nfrom optlab.kernels import _polar_coefficients",
    "kernels/_polar_coefficients.py": "import math",
    "optimizers/__init__.py": "from ._muon import muon as muon",
    "optimizers/_muon.py": "import jax\nfrom optlab import kernels, trees\n" + CORE,
    "catalog.py": "from optlab import optimizers",
    "testing.py": "import chex\nfrom optlab import catalog",
    "lab/train.py": "import flax\nfrom optlab import lab, trees",
    "lab/race.py": "from optlab import catalog",
    "lab/cli/__init__.py": "from absl import flags",
}

# One fault each: the file, what is written there, and a part of what must be said.
PLANTED = [
    ("kernels/_root.py", "from optlab import trees", "may not import room 'trees'"),
    ("trees.py", "import optlab.kernels", "may not import room 'kernels'"),
    ("trees.py", "import optlab", "not the whole package"),
    ("optimizers/_muon.py", "from optlab import wrappers", "room 'wrappers'"),
    ("optimizers/_muon.py", "from .. import catalog", "room 'catalog'"),
    ("optimizers/_adam.py", "from . import _lion", "files of one room"),
    ("optimizers/_adam.py", "from optlab.optimizers import muon", "files of one room"),
    ("optimizers/_adam.py", "from optlab.kernels._root import root", "public names"),
    ("lab/race.py", "from optlab.kernels import _root", "public names"),
    ("catalog.py", "def f():\n    from optlab import lab", "room 'lab'"),
    ("__init__.py", "from optlab import lab", "room 'lab'"),
    ("optimizers/_muon.py", "import flax.nnx" + CORE, "may not import 'flax'"),
    ("catalog.py", "import chex", "may not import 'chex'"),
    ("trees.py", "from optax._src import base", "private module"),
    ("trees.py", "import jax\nf = jax._src.core", "uses jax._src: private"),
    ("lab/race.py", "from optlab import kernels\nkernels._root", "kernels._root"),
    ("kernels/_root.py", "import jax.sharding", "neither mesh nor tree"),
    ("kernels/_root.py", "import jax\njax.tree.map(abs, 1)", "neither mesh nor tree"),
    ("lab/train.py", "from absl import flags", "flags belong to lab/cli"),
    ("attic/_x.py", "", "room 'attic' is not on the ladder"),
    ("kernels/root.py", "", "_root.py"),
    ("kernels/_helpers.py", "", "the name says nothing"),
    ("lab/utils/__init__.py", "", "the name says nothing"),
    ("kernels/__init__.py", "from ._root import root", "re-export it as x as x"),
    ("schedules/_wsd.py", "def wsd_schedule(): ...", "says that it is a schedule"),
    ("optimizers/_muon.py", CORE.replace("Muon", "Moon"), "a core without its state"),
    ("optimizers/_muon.py", CORE.replace("count", "mu"), "first field of a state"),
    ("trees.py", "type Leaf = int", "not Python 3.11"),
    ("trees.py", "assert True", "assert is for tests"),
    ("trees.py", "pass\n" * 401, "at most 400 lines"),
    ("trees.py", "def f():\n" + "    pass\n" * 61, "at most 60 below"),
]


def build(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        path = root / "optlab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_house_has_no_fault():
    assert architecture.faults(ROOT) == []


def test_a_clean_toy_house_has_no_fault(tmp_path):
    assert architecture.faults(build(tmp_path, TOY)) == []


@pytest.mark.parametrize(("file", "text", "said"), PLANTED)
def test_each_planted_fault_is_named(tmp_path, file, text, said):
    found = architecture.faults(build(tmp_path, {**TOY, file: text}))
    place = "optlab/" + file.removesuffix("/__init__.py")
    assert any(fault.startswith(place) and said in fault for fault in found), found


def test_a_docstring_does_not_count_as_lines_of_a_function(tmp_path):
    text = 'def f():\n    """D\n' + "    d\n" * 90 + '    """\n' + "    pass\n" * 60
    assert architecture.faults(build(tmp_path, {**TOY, "trees.py": text})) == []


def test_every_public_object_has_one_public_path():
    places = defaultdict(list)
    for module in public_names.modules():
        # Files of the lab import each other's names; these are no second path there.
        in_lab = module.__name__.startswith("optlab.lab")
        offered = public_names.names if in_lab else public_names.reachable
        for name, thing in offered(module).items():
            if inspect.isclass(thing) or inspect.isroutine(thing):
                places[id(thing)].append(f"{module.__name__}.{name}")
    assert [paths for paths in places.values() if len(paths) > 1] == []


def test_the_top_level_offers_rooms_and_a_handful_of_names():
    handful = public_names.reachable(optlab).values()
    assert len(handful) <= 8
    public = [id(thing) for thing in public_names.paths().values()]
    assert all(id(thing) in public for thing in handful)
    rooms = [path.stem for path in (ROOT / "optlab").iterdir() if path.name[0] != "_"]
    library = set(rooms) & set(architecture.LADDER) - {"lab", "testing"}
    assert library <= set(vars(optlab))


def test_importing_optlab_loads_neither_flax_nor_matplotlib_nor_orbax():
    lab_only = ("flax", "matplotlib", "orbax", "rich", "sklearn", "scipy.stats")
    code = f"import sys, optlab; print([m for m in {lab_only} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_the_readme_table_equals_the_catalogue():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = catalog.markdown_table()
    assert table.strip() in text, "run `make format`"
    assert all(f"`{row.name}`" in table for row in catalog.rows())


@pytest.mark.parametrize(("page", "name", "write"), tables.TABLES)
def test_generated_tables_are_up_to_date(page, name, write):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.splice(text, name, write()) == text, "run `make format`"


def test_splicing_replaces_what_stands_between_the_marks_only():
    begin, end = "<!-- --8<-- [start:x] -->", "<!-- --8<-- [end:x] -->"
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    new = tables.splice(text, "x", "| new |")
    assert new == f"before\n{begin}\n\n| new |\n\n{end}\nafter\n"
    assert tables.splice(new, "x", "| new |") == new
    with pytest.raises(ValueError, match="mark"):
        tables.splice("no marks", "x", "| new |")


@pytest.mark.parametrize("row", catalog.rows(), ids=lambda row: row.name)
def test_every_row_has_a_test_file_and_a_docstring(row):
    assert inspect.getdoc(row.build)
    module = row.build.__module__
    ours = module.startswith("optlab.")
    name = module.rpartition(".")[2].strip("_") if ours else row.name
    path = pathlib.Path("tests") / row.room / f"test_{name}.py"
    found = (ROOT / path).is_file()
    if not found and row.room not in ("optimizers", "wrappers", "schedules"):
        # Functions that are alike may share their tests.
        files = (ROOT / "tests" / row.room).glob("test_*.py")
        texts = [file.read_text(encoding="utf-8") for file in files]
        found = any(f".{row.name}(" in text for text in texts)
    assert found, f"row {row.name!r} has no test {path}"
