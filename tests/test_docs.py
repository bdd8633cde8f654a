"""What people read is true: doctests, docstrings, README's code and the site."""

import doctest
import inspect
import pathlib
import re
import subprocess
import sys
import types
import zlib

import pytest

from tests import public_names, template_optimizer

ROOT = pathlib.Path(__file__).parents[1]
MODULES = public_names.modules(private=True)
PUBLIC = public_names.paths()
DOCTEST_FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

# Sections that say what comes back.
RESULTS = ("Returns:", "Yields:")


def missing_sections(function: types.FunctionType) -> list[str]:
    """Returns which of the Args and Returns sections a function's docstring lacks."""
    doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
    gives = signature.return_annotation not in (None, "None")
    missing = []
    if [name for name in signature.parameters if name not in ("self", "cls")]:
        missing += [] if "Args:" in doc else ["Args"]
    if gives and not any(result in doc for result in RESULTS):
        missing.append("Returns")
    return missing


def undocumented(path: str, thing: object) -> list[str]:
    """Returns what the docstrings of a public function or class do not tell.

    The lab's functions are parts of a program: they need a docstring, not sections.
    """
    if not inspect.getdoc(thing):
        return [f"{path}: no docstring"]
    if inspect.isfunction(thing) and not path.startswith("optlab.lab."):
        return [f"{path}: no {part} section" for part in missing_sections(thing)]
    methods = {
        name: method
        for name, method in (vars(thing).items() if inspect.isclass(thing) else ())
        if not name.startswith("_") and inspect.isfunction(method)
    }
    return [f"{path}.{name}" for name, m in methods.items() if not inspect.getdoc(m)]


@pytest.mark.parametrize(
    "module", [*MODULES, template_optimizer], ids=lambda module: module.__name__
)
def test_the_examples_of_a_module_give_what_they_print(module):
    failed, _ = doctest.testmod(module, optionflags=DOCTEST_FLAGS)
    assert failed == 0


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_module_says_what_it_is(module):
    assert inspect.getdoc(module)


@pytest.mark.parametrize("path", [path for path in PUBLIC if callable(PUBLIC[path])])
def test_every_public_name_is_documented(path):
    assert undocumented(path, PUBLIC[path]) == []


def test_a_missing_section_is_named():
    def bare(x: int) -> int:
        """Doubles."""
        return 2 * x

    def full(x: int) -> int:
        """Doubles.

        Args:
          x: Number.

        Returns:
          Twice the number.
        """
        return 2 * x

    assert undocumented("bare", bare) == [
        "bare: no Args section",
        "bare: no Returns section",
    ]
    assert undocumented("full", full) == []
    assert undocumented("none", lambda: None) == ["none: no docstring"]


def python_of(page: pathlib.Path) -> str:
    """Returns the fenced Python of a page, its blocks one after the other."""
    text = page.read_text(encoding="utf-8")
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    )


PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_of(page)], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page):
    exec(compile(python_of(page), page.name, "exec"), {"__name__": "__page__"})


def test_the_example_of_the_readme_prints_what_it_says(capsys):
    code = python_of(ROOT / "README.md")
    exec(compile(code, "README.md", "exec"), {"__name__": "__page__"})
    first, last = map(float, capsys.readouterr().out.split(" -> "))
    first_said, last_said = map(float, re.findall(r"# (\S+) -> (\S+)", code)[0])
    # Another version of Flax may start from other weights.
    assert first == pytest.approx(first_said, rel=0.5)
    assert last < 2 * last_said


def test_the_readme_opens_with_the_two_commands():
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8")[:600]
    assert "pip install -e '.[lab]' && optlab race" in first_screen
    assert "pip install -e '.[test]' && pytest -n 2" in first_screen


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: any warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_covers_every_public_name(site):
    # The inventory that other sites link to: four lines of text, then zlib.
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[-1]
    entries = zlib.decompress(packed).decode().splitlines()
    covered = {entry.split(" ", 1)[0] for entry in entries}
    assert sorted(set(PUBLIC) - covered) == []


def test_the_site_asks_no_other_host_for_scripts_styles_or_fonts(site):
    pages = list(site.glob("**/*.html"))
    assert pages
    fetched = re.compile(r'<(?:script|link|img)\b[^>]*(?:src|href)="?(https?:[^">]*)')
    asked = {url for page in pages for url in fetched.findall(page.read_text())}
    assert sorted(asked) == []
