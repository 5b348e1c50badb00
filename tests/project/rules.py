"""The rules of the house, each a function from one source file to what is wrong with it.

A file is given as its path inside the package and its text, so that planted violations are as easy to judge
as real files. Every import counts, wherever in the body it stands, and so does ``import_module("whence...")``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "whence"

# From the ground up. A room imports from floors below its own, never from another room on its floor.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"core"}),
    frozenset({"text", "scores"}),
    frozenset({"models"}),
    frozenset({"step_functions"}),
    frozenset({"probe"}),
    frozenset({"methods"}),
    frozenset({"question"}),
    frozenset({"answers"}),
    frozenset({"attribute"}),
    frozenset({"studies", "views", "serving"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

# Calls up the floors, bound late: the methods that users expect on the objects themselves.
UPWARD_CALLS = {
    ("models/model.py", "whence.attribute"),
    ("scores/attribution.py", "whence.views.console"),
    ("scores/attributions.py", "whence.views.console"),
}
# Where the name of a module may be an argument: a table of whence, or an optional library.
COMPUTED_IMPORTS = {"__init__.py", "core/registry.py", "core/extras.py"}

# Who may import a library: rooms, or single files.
LIBRARIES = {
    "nnsight": {"models", "probe", "serving"},
    "rich": {"views", "cli", "core/progress.py"},
    "typer": {"cli"},
    "transformers": {
        "models",
        "text",
        "scores",
        "core",
        "step_functions",
        "probe",
        "question",
        "answers",
        "attribute",
        "cli",
        "serving",
    },
}

# Modules with functions that travel, by their source, to the place where the model runs: those that are sent, ...
SENT = frozenset(
    {
        "core/random.py",
        "models/programs.py",
        "methods/gradient/completeness.py",
        "methods/perturbation/next_token.py",
        "methods/internals/patterns.py",
        "methods/internals/rolling.py",
        "methods/internals/alti_fold.py",
        "methods/internals/flow_fold.py",
        "methods/internals/logit_fold.py",
        "methods/internals/composition.py",
        "methods/internals/norms_fold.py",
        "methods/internals/proximity.py",
        "methods/internals/trace_fold.py",
        "probe/differentiate.py",
        "probe/locate.py",
        "probe/measure.py",
        "probe/observe.py",
        "probe/remove.py",
        "probe/respond.py",
        "probe/zero.py",
        "step_functions/functions.py",
        "step_functions/inputs.py",
        "step_functions/multipliers.py",
    }
)
# ... and, in these rooms, all that those import.
TRAVELLING_ROOMS = frozenset({"models", "probe", "step_functions"})
VAGUE_NAMES = {"utils.py", "helpers.py", "misc.py", "common.py"}
MOST_LINES = 400
_NOTHING = frozenset({ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom})


@dataclass(frozen=True)
class Import:
    """One name that a file imports.

    Attributes:
        module: The module, such as ``whence.models.loading``.
        name: What is taken from it; empty for the module itself.
        types_only: It stands under ``if TYPE_CHECKING:``.
        late: It is an ``import_module`` call.
        line: Where it stands.
    """

    module: str
    name: str
    types_only: bool
    late: bool
    line: int

    @property
    def room(self) -> str:
        """The room of whence it comes from, or nothing."""
        parts = self.module.split(".")
        if parts[0] != "whence":
            return ""
        return parts[1] if len(parts) > 1 else self.name


@dataclass(frozen=True)
class Source:
    """A file of the package: its path inside it, and its text."""

    path: str
    text: str

    @property
    def room(self) -> str:
        """The top folder or module."""
        return self.path.split("/")[0].removesuffix(".py")

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Every import, anywhere in the file."""
        return tuple(_imports(self.tree, types_only=False))


def sources() -> list[Source]:
    """Every Python file of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [Source(file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")) for file in files]


def _imports(node: ast.AST, *, types_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, "", types_only, False, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            stem = "." * child.level + (child.module or "")
            yield from (Import(stem, alias.name, types_only, False, child.lineno) for alias in child.names)
        elif isinstance(child, ast.Call) and _called(child) in ("import_module", "__import__"):
            first = child.args[0] if child.args else None
            literal = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else "?"
            yield Import(literal, "", types_only, True, child.lineno)
            yield from _imports(child, types_only=types_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for part in child.body:
                yield from _imports(ast.Module([part], []), types_only=True)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), types_only=types_only)
        else:
            yield from _imports(child, types_only=types_only)


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).split(".")[-1]


def floors(source: Source) -> Iterator[str]:
    """Imports go down only."""
    if source.path == "__init__.py":
        return
    here = source.room
    if here not in FLOOR:
        yield f"{here} stands on no floor"
        return
    for one in source.imports:
        room = one.room
        if not room or room == here or (one.late and (source.path, one.module) in UPWARD_CALLS):
            continue
        if room not in FLOOR:
            if not (one.module == "whence" and here in ("cli", "__main__")):
                yield f"line {one.line}: {one.module} {one.name} is in no room"
        elif FLOOR[room] >= FLOOR[here]:
            yield f"line {one.line}: {here} imports {one.module}, which is not on a floor below"


def serving_stands_alone(source: Source) -> Iterator[str]:
    """The server runs where whence is not installed, so that nothing that is sent can come to need it there."""
    if source.room == "serving":
        yield from (f"line {one.line}: {one.module}" for one in source.imports if one.module.startswith("whence"))


def no_relative_imports(source: Source) -> Iterator[str]:
    """A module is named in full, except in the server, which runs under another name elsewhere."""
    if source.room == "serving":
        return
    yield from (f"line {one.line}: relative import" for one in source.imports if one.module.startswith("."))


def known_late_imports(source: Source) -> Iterator[str]:
    """The module of a late import stands in the source, except where it comes from a table."""
    for one in source.imports:
        if one.late and one.module == "?" and source.path not in COMPUTED_IMPORTS:
            yield f"line {one.line}: import_module of a computed name"


def libraries(source: Source) -> Iterator[str]:
    """Some libraries have their rooms."""
    for one in source.imports:
        library = one.module.split(".")[0]
        homes = LIBRARIES.get(library)
        if homes is not None and source.room not in homes and source.path not in homes:
            yield f"line {one.line}: {library} may be imported in {', '.join(sorted(homes))} only"


def names_say_something(source: Source) -> Iterator[str]:
    """No drawer for odds and ends."""
    name = source.path.rpartition("/")[2]
    if name in VAGUE_NAMES:
        yield f"{name} says nothing about what is in it"


def short(source: Source) -> Iterator[str]:
    """A file does one thing."""
    lines = len(source.text.splitlines())
    if lines > MOST_LINES:
        yield f"{lines} lines, more than {MOST_LINES}"


def introduced(source: Source) -> Iterator[str]:
    """A file says what it is."""
    if not ast.get_docstring(source.tree):
        yield "no module docstring"


def future_annotations(source: Source) -> Iterator[str]:
    """Annotations are never evaluated; a file without code of its own needs no such line."""
    code = [node for node in source.tree.body if not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom)]
    only_names = all(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in code)
    if not only_names and Import("__future__", "annotations", False, False, 0) not in {
        Import(one.module, one.name, one.types_only, one.late, 0) for one in source.imports
    }:
        yield "no `from __future__ import annotations`"


def programs_travel(source: Source) -> Iterator[str]:
    """Programs are plain functions: what does not travel by source is not there."""
    if source.path not in PROGRAMS:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.decorator_list:
            yield f"line {node.lineno}: {node.name} is decorated; a wrapper is lost on the way"
        if isinstance(node, ast.ClassDef) and node.bases:
            yield f"line {node.lineno}: {node.name} has a base class"
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global state"
    for one in source.imports:
        if one.module.startswith("whence") and not one.types_only and _is_module(one):
            yield f"line {one.line}: {one.module} {one.name} is a module; import functions by name"
    for node in source.tree.body:
        yield from _fixed_at_import(node)


def _fixed_at_import(node: ast.stmt) -> Iterator[str]:
    """Module level holds imports, functions, plain classes and constants that cannot change."""
    if type(node) in _NOTHING or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse:
        return
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _constant(node.value):
        return
    yield f"line {node.lineno}: module-level state: {ast.unparse(node)[:60]}"


def _constant(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple):
        return all(_constant(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp):
        return _constant(node.operand)
    if isinstance(node, ast.BinOp):
        return _constant(node.left) and _constant(node.right)
    return isinstance(node, ast.Constant)


def _place(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:])


def _is_module(one: Import) -> bool:
    place = _place(f"{one.module}.{one.name}" if one.name else one.module)
    return place.with_suffix(".py").is_file() or place.is_dir()


def _programs() -> frozenset[str]:
    """Every module that travels."""
    found: set[str] = set()
    waiting = set(SENT)
    while waiting:
        path = waiting.pop()
        found.add(path)
        for one in Source(path, (PACKAGE / path).read_text(encoding="utf-8")).imports:
            file = _place(one.module).with_suffix(".py")
            if one.room in TRAVELLING_ROOMS and not one.types_only and file.is_file():
                waiting |= {file.relative_to(PACKAGE).as_posix()} - found
    return frozenset(found)


PROGRAMS = _programs()

RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    floors,
    no_relative_imports,
    serving_stands_alone,
    known_late_imports,
    libraries,
    names_say_something,
    short,
    introduced,
    future_annotations,
    programs_travel,
)


def problems(source: Source) -> list[str]:
    """What all rules have to say about a file."""
    return [f"{rule.__name__}: {text}" for rule in RULES for text in rule(source)]
