"""Reads the sources of optlab with `ast` and names every break of the house rules."""

import ast
import dataclasses
import pathlib
import sys
from collections.abc import Iterator

# Who may import whom inside optlab: no rung looks up or sideways. A row is a room (a
# folder, or a file for a room of one file) with the rooms that it may import.
_RUNG_0 = ("links", "trees", "kernels", "schedules")
_RUNG_2 = ("probes", "solvers", "optimizers", "wrappers", "controllers")
_LIBRARY = (*_RUNG_0, "laws", "sharding", "aggregation", "estimators", *_RUNG_2)
LADDER: dict[str, tuple[str, ...]] = {
    **{room: () for room in _RUNG_0},
    "links": ("trees",),
    "laws": ("schedules",),
    "sharding": ("trees",),
    "aggregation": ("trees", "links"),
    "estimators": ("trees", "kernels", "links"),
    "probes": ("trees", "kernels", "links", "estimators", "laws"),
    "solvers": ("trees", "kernels", "links", "estimators", "laws"),
    "optimizers": (*_RUNG_0, "estimators"),
    "wrappers": (*_RUNG_0, "estimators"),
    "controllers": ("laws", "schedules"),
    "catalog": _LIBRARY,
    "inspection": ("catalog", "sharding", *_RUNG_0),
    "testing": ("catalog", "sharding", "inspection", *_RUNG_0),
    "lab": (*_LIBRARY, "catalog", "inspection", "testing"),
    "__init__": (*_LIBRARY, "catalog", "inspection", "testing"),
}

# Files of one room that the others in it may import.
SHARED_FILES = {
    "catalog": (
        *("_row", "_adaptive", "_optimizers", "_spectral", "_kronecker", "_curvature"),
        "_layerwise",
        *("_first_order", "_functions", "_geometry", "_links", "_low_memory"),
        *("_momentum", "_schedules", "_tuning_free", "_wrappers"),
    ),
    "aggregation": ("_workers",),
    "controllers": ("_batch_tests", "_forecast", "_next_rate", "_plain", "_stages"),
    "estimators": ("_clipped", "_hessian", "_inverse_product", "_spsa"),
    "sharding": (
        *(
            "_moves",
            "_slots",
            "_spread",
            "_state",
            "_compiled_text",
            "_parameters",
            "_placed",
        ),
    ),
    "inspection": ("_traced", "_temporaries", "_step"),
    "links": ("_arrays", "_channels", "_leaves", "_ranges", "_rate"),
    "optimizers": (
        "_averages",
        "_distance",
        "_muon",
        "_scale",
        "_subspace",
        "_statistics",
        "_frugal_parts",
        "_kron_factors",
    ),
    "kernels": ("_polar_coefficients", "_symmetric", "_polar_plan", "_kronecker"),
    "probes": ("_krylov", "_eigenpairs", "_in_a_state", "_trace"),
    "schedules": ("shapes", "_phases", "_checks", "_steered"),
    "solvers": ("_stacked",),
    "trees": ("_paths", "_matrices", "_views", "_stacks", "_tensors"),
    "laws": (
        *("_sums", "_curve", "_law", "_fitted", "_annealing_law", "_multi_power_law"),
        "_predict",
    ),
}

# Rooms that are one instrument in several files, which may import each other.
ONE_INSTRUMENT = ("testing", "lab")

# Public modules inside a room; every other file there is private.
PUBLIC_FILES = {"schedules": ("shapes",)}

# Packages that are not ours, beside the standard library.
OUTSIDE = ("jax", "jaxlib", "optax", "numpy")
OUTSIDE_OF = {
    "laws": (*OUTSIDE, "scipy"),
    "controllers": (*OUTSIDE, "scipy", "sklearn"),
    "testing": (*OUTSIDE, "chex"),
    "lab": (
        *OUTSIDE,
        *("absl", "flax", "matplotlib", "orbax", "rich", "scipy", "sklearn"),
    ),
}

# Documented for everybody, whatever their names begin with.
PUBLIC_IN_SPITE = ("os._exit",)

# A kernel sees one array: no mesh and no tree.
NOT_FOR_KERNELS = ("jax.sharding", "jax.tree", "jax.tree_util", "jax.set_mesh")

BANNED_NAMES = (
    *("utils", "util", "helpers", "helper", "misc", "common", "base", "core"),
    *("manager", "src", "contrib"),
)

PYTHON = (3, 11)  # the oldest that the sources must be readable for
FILE_LINES = 400
FUNCTION_LINES = 60  # without its docstring


@dataclasses.dataclass(frozen=True)
class Source:
    """One file: its path below the repository's root, its room and its tree."""

    path: pathlib.PurePath
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder below optlab, or the file's own name."""
        return self.path.with_suffix("").parts[1]

    @property
    def package(self) -> tuple[str, ...]:
        """The package that relative imports start from."""
        return self.path.parts[:-1]


def faults(root: pathlib.Path) -> list[str]:
    """Returns one line for each break of a rule below `root`, which holds `optlab/`."""
    found = [fault for path in _folders_and_files(root) for fault in _bad_path(path)]
    for path in sorted(root.glob("optlab/**/*.py")):
        text, path = path.read_text(encoding="utf-8"), path.relative_to(root)
        try:
            source = Source(path, text, ast.parse(text, feature_version=PYTHON))
        except SyntaxError as error:
            found.append(f"{path}:{error.lineno}: not Python 3.11: {error.msg}")
            continue
        for rule in (_imports, _private_attributes, _names, _states, _sizes, _asserts):
            found += [f"{source.path}:{fault}" for fault in rule(source)]
    return found


def _folders_and_files(root: pathlib.Path) -> Iterator[pathlib.PurePath]:
    for top in ("optlab", "tests", "examples", "benchmarks", "docs", "notebooks"):
        for path in sorted(root.glob(f"{top}/**/*")):
            if "__pycache__" not in path.parts:
                yield path.relative_to(root)


def _bad_path(path: pathlib.PurePath) -> Iterator[str]:
    if path.stem.strip("_") in BANNED_NAMES:
        yield f"{path}: the name says nothing; name it after what is in it"
    if path.parts[0] != "optlab" or path.suffix != ".py":
        return
    room, file = path.with_suffix("").parts[1], path.stem
    if room not in LADDER:
        yield f"{path}: room '{room}' is not on the ladder"
    private = file.startswith("_") or file in PUBLIC_FILES.get(room, ())
    if len(path.parts) > 2 and room != "lab" and not private:
        yield f"{path}: a module inside a room is private: _{file}.py"


def _imported(source: Source) -> Iterator[tuple[int, str, str | None]]:
    """Yields line, absolute dotted name, and the local name that it is bound to."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            start = source.package[: len(source.package) - node.level + 1]
            prefix = ".".join((*(start if node.level else ()), node.module or ""))
            for alias in node.names:
                name = f"{prefix.strip('.')}.{alias.name}"
                yield node.lineno, name, alias.asname or alias.name


def _imports(source: Source) -> Iterator[str]:
    for line, name, _ in _imported(source):
        parts = name.split(".")
        if parts[0] == "optlab":
            problem = _bad_own_import(source, parts)
        else:
            problem = _bad_outside_import(source, parts)
        if problem:
            yield f"{line}: imports {name}: {problem}"


def _bad_own_import(source: Source, parts: list[str]) -> str | None:
    room, file = source.room, source.path.stem
    if len(parts) == 1:
        return "import the room that is needed, not the whole package"
    target = parts[1]
    if room == "__init__" and target.startswith("__"):
        return None
    if target != room:
        if target not in LADDER.get(room, ()):
            return f"room '{room}' may not import room '{target}'"
        if any(part.startswith("_") for part in parts[2:]):
            return "another room is used by its public names"
        return None
    shared = set(parts[2:]) & set(SHARED_FILES.get(room, ()))
    if file == "__init__" or room in ONE_INSTRUMENT or shared:
        return None
    return "files of one room do not import each other; what they share moves down"


def _bad_outside_import(source: Source, parts: list[str]) -> str | None:
    package, name = parts[0], ".".join(parts)
    if package in sys.stdlib_module_names:
        return None
    if package not in OUTSIDE_OF.get(source.room, OUTSIDE):
        return f"room '{source.room}' may not import '{package}'"
    if any(part.startswith("_") for part in parts):
        return "private module of another package"
    if package == "absl" and source.path.parts[2] != "cli":
        return "flags belong to lab/cli"
    if source.room == "kernels" and name.startswith(NOT_FOR_KERNELS):
        return "a kernel sees neither mesh nor tree"
    return None


def _private_attributes(source: Source) -> Iterator[str]:
    modules = {bound for _, _, bound in _imported(source)}
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = ast.unparse(node)
        if name.split(".")[0] not in modules or name in PUBLIC_IN_SPITE:
            continue
        if node.attr.startswith("_") and not node.attr.startswith("__"):
            yield f"{node.lineno}: uses {name}: private"
        if source.room == "kernels" and name in NOT_FOR_KERNELS:
            yield f"{node.lineno}: uses {name}: a kernel sees neither mesh nor tree"


def _names(source: Source) -> Iterator[str]:
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if source.room == "schedules" and node.name.lower().endswith("schedule"):
                yield f"{node.lineno}: {node.name}: the room says that it is a schedule"
    is_room = source.path.stem == "__init__" and source.room not in ("__init__", "lab")
    listed = any(ast.unparse(node).startswith("__all__") for node in source.tree.body)
    for node in source.tree.body if is_room and not listed else ():
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname != alias.name:
                    yield f"{node.lineno}: {alias.name}: re-export it as x as x"


def _states(source: Source) -> Iterator[str]:
    """A core `scale_by_x` has its state `ScaleByXState`, whose first field is count."""
    cores = {
        "".join(word.capitalize() for word in node.name.split("_")) + "State"
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("scale_by_")
    }
    states = {
        node.name: node
        for node in source.tree.body
        if isinstance(node, ast.ClassDef) and node.name.startswith("ScaleBy")
    }
    for name in sorted(cores ^ set(states)):
        has = (
            "a core without its state" if name in cores else "a state without its core"
        )
        yield f"1: {name}: {has}; scale_by_x goes with ScaleByXState"
    for name, node in states.items():
        fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
        if not fields or ast.unparse(fields[0].target) != "count":
            yield f"{node.lineno}: {name}: the first field of a state is count"


def _sizes(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > FILE_LINES:
        yield f"{lines}: a file has at most {FILE_LINES} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            has_docstring = ast.get_docstring(node, clean=False) is not None
            first = (node.body[0].end_lineno or 0) + 1 if has_docstring else node.lineno
            if last - first + 1 > FUNCTION_LINES:
                yield (
                    f"{node.lineno}: {node.name} has {last - first + 1} lines; a"
                    f" function has at most {FUNCTION_LINES} below its docstring"
                )


def _asserts(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert is for tests; raise ValueError or TypeError"
