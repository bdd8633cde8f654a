"""The notebooks run from top to bottom, and install packages on Colab alone."""

import pathlib
import sys
import types

import nbclient
import nbformat
import pytest
from IPython.core import inputtransformer2
from nbclient import exceptions

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# What replaces the values of the cell tagged `parameters`. The last cell's numbers hold
# with these as well: Muon needs 31 to 39 of 60 steps over four pairs of seeds.
SMALL_BUDGETS = {
    "01_quickstart": "STEPS, SEEDS = 60, 2",
    "02_schedules_and_laws": "STEPS, SEEDS = 200, 8",
    "03_first_order": "STEPS, SEEDS, OCTAVES, RACERS = 50, 2, 0, 3",
    "04_matrix_optimizers": "STEPS, SEEDS = 60, 2",
    "05_sharding": "LAYERS, D = (2, 4), 16",
    # Nearly all of its time would be the compiler's.
    "06_without_tuning": """
STEPS, SEEDS, GUESSES, FINDERS, TWINS, NOISES, SIZES, RULES = 60, 2, 2, 2, 1, 2, 2, 2
jax.config.update("jax_disable_most_optimizations", True)
""",
}
STRICT = """
import warnings
warnings.filterwarnings("error", module="__main__")
"""

every_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda notebook: notebook.stem
)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_budget(notebook, source):
    """Puts a cell after the one tagged `parameters`, so that its values win."""
    (place,) = (
        i
        for i, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    )
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    return notebook


def execute(notebook, folder):
    """Runs a notebook in place, in this very Python; a failing cell raises."""
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
    # A kernel of this name that the user has installed may be another Python.
    client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
    client.execute()


def installed_by(source, monkeypatch, *, on_colab):
    """Runs the code of a cell and returns the arguments of `%pip` in it."""
    asked = []

    class Shell:
        def run_line_magic(self, name, line):
            assert name == "pip"
            asked.append(line)

    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if on_colab:
        monkeypatch.setitem(
            sys.modules, "google.colab", types.ModuleType("google.colab")
        )
    plain = inputtransformer2.TransformerManager().transform_cell(source)
    exec(plain, {"get_ipython": Shell})
    return asked


def test_every_notebook_has_a_small_budget():
    assert [path.stem for path in NOTEBOOKS] == list(SMALL_BUDGETS)


@every_notebook
def test_a_notebook_runs_with_a_small_budget(path, tmp_path):
    notebook = with_budget(read(path), SMALL_BUDGETS[path.stem] + STRICT)
    execute(notebook, tmp_path)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Warning:" not in printed
    assert any("image/png" in output.get("data", {}) for output in outputs)


@every_notebook
def test_the_last_cell_checks_the_numbers(path):
    assert read(path).cells[-1].source.count("\nassert ") >= 5


def test_a_false_number_in_a_notebook_is_an_error(tmp_path):
    cell = nbformat.v4.new_code_cell("assert 1 + 1 == 3")
    with pytest.raises(exceptions.CellExecutionError, match="AssertionError"):
        execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)


@every_notebook
def test_a_notebook_opens_in_colab_and_installs_only_there(path, monkeypatch):
    notebook = read(path)
    colab = "https://colab.research.google.com/github/optlab/optlab/blob/main"
    assert f"({colab}/notebooks/{path.name})" in notebook.cells[0].source
    install = code_cells(notebook)[0].source
    assert installed_by(install, monkeypatch, on_colab=False) == []
    (asked,) = installed_by(install, monkeypatch, on_colab=True)
    assert "optlab-jax[lab]" in asked


@every_notebook
def test_a_notebook_is_kept_without_outputs(path):
    for cell in code_cells(read(path)):
        assert cell.outputs == []
        assert cell.execution_count is None
