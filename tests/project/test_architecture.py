"""The shape of the code: who imports whom, what an import loads, how long files are, what may travel."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

import whence
from rules import (
    FLOOR,
    PACKAGE,
    PROGRAMS,
    RULES,
    SENT,
    UPWARD_CALLS,
    Source,
    problems,
    sources,
)

FILES = sources()
HEAD = '"""A file."""\n\nfrom __future__ import annotations\n\n'


@pytest.mark.parametrize("source", FILES, ids=lambda source: source.path)
def test_file_keeps_the_rules(source):
    assert problems(source) == []


# Rule, path, text: each of these must be caught by that rule.
PLANTED = [
    ("floors", "core/plan.py", HEAD + "from whence.scores import Scores\n"),
    ("floors", "text/prompt.py", HEAD + "from whence.scores import Scores\n"),
    ("floors", "scores/array.py", HEAD + "import whence.text.prompt\n"),
    ("floors", "models/model.py", HEAD + "from whence.attribute import attribute\n"),
    ("floors", "models/model.py", HEAD + "def f():\n    from whence.step_functions import logit\n"),
    ("floors", "models/loading.py", HEAD + "import_module('whence.attribute')\n"),
    ("floors", "models/model.py", HEAD + "import importlib\nimportlib.import_module('whence.methods')\n"),
    ("floors", "scores/attribution.py", HEAD + "import_module('whence.views.html')\n"),
    ("floors", "step_functions/table.py", HEAD + "if TYPE_CHECKING:\n    from whence.probe import Probe\n"),
    ("floors", "probe/probe.py", HEAD + "from whence.methods import METHODS\n"),
    ("floors", "methods/gradient/saliency.py", HEAD + "from whence import attribute\n"),
    ("floors", "methods/gradient/saliency.py", HEAD + "from whence import load\n"),
    ("floors", "answers.py", HEAD + "from whence.attribute import attribute\n"),
    ("floors", "question.py", HEAD + "if TYPE_CHECKING:\n    from whence.answers import assemble\n"),
    ("floors", "attribute.py", HEAD + "from whence.views import console\n"),
    ("floors", "views/html.py", HEAD + "from whence.studies import context\n"),
    ("floors", "views/html.py", HEAD + "from whence.cli import app\n"),
    ("floors", "odds/ends.py", HEAD),
    ("no_relative_imports", "methods/gradient/saliency.py", HEAD + "from .quadrature import quadrature\n"),
    ("no_relative_imports", "models/model.py", HEAD + "from . import loading\n"),
    ("serving_stands_alone", "serving/app.py", HEAD + "from whence.core.errors import InputError\n"),
    ("known_late_imports", "models/model.py", HEAD + "import_module(name)\n"),
    ("known_late_imports", "probe/plan.py", HEAD + "__import__(f'whence.{room}')\n"),
    ("libraries", "methods/gradient/saliency.py", HEAD + "import nnsight\n"),
    ("libraries", "methods/gradient/saliency.py", HEAD + "from transformers import AutoModel\n"),
    ("libraries", "views/console.py", HEAD + "from nnsight import NNsight\n"),
    ("libraries", "attribute.py", HEAD + "def f():\n    import nnsight.intervention\n"),
    ("libraries", "scores/attribution.py", HEAD + "from rich.console import Console\n"),
    ("libraries", "core/registry.py", HEAD + "import rich\n"),
    ("libraries", "views/console.py", HEAD + "import typer\n"),
    ("names_say_something", "probe/utils.py", HEAD),
    ("names_say_something", "text/helpers.py", HEAD),
    ("short", "text/prompt.py", HEAD + "x = 1\n" * 397),
    ("introduced", "text/prompt.py", "from __future__ import annotations\n"),
    ("future_annotations", "text/prompt.py", '"""A file."""\n\ndef f() -> None:\n    pass\n'),
    ("programs_travel", "probe/measure.py", HEAD + "@torch.no_grad()\ndef run(model):\n    pass\n"),
    ("programs_travel", "probe/observe.py", HEAD + "def outer():\n    @cache\n    def inner():\n        pass\n"),
    ("programs_travel", "step_functions/inputs.py", HEAD + "@dataclass\nclass StepInputs:\n    logits: int\n"),
    ("programs_travel", "step_functions/inputs.py", HEAD + "class Kind(Enum):\n    A = 1\n"),
    ("programs_travel", "models/access.py", HEAD + "log = logging.getLogger(__name__)\n"),
    ("programs_travel", "models/access.py", HEAD + "CACHE = {}\n"),
    ("programs_travel", "models/programs.py", HEAD + "CACHE: dict[str, int] = dict()\n"),
    ("programs_travel", "probe/measure.py", HEAD + "for k in range(3):\n    pass\n"),
    ("programs_travel", "probe/measure.py", HEAD + "def f():\n    global n\n    n = 1\n"),
    ("programs_travel", "probe/respond.py", HEAD + "from whence.probe import observe\n"),
    ("programs_travel", "probe/respond.py", HEAD + "import whence.probe.observe\n"),
]


@pytest.mark.parametrize(("name", "path", "text"), PLANTED)
def test_rule_catches_a_planted_violation(name, path, text):
    rule = next(rule for rule in RULES if rule.__name__ == name)
    assert list(rule(Source(path, text)))


def test_every_rule_has_a_planted_violation():
    assert {name for name, _, _ in PLANTED} == {rule.__name__ for rule in RULES}


ALLOWED = [
    ("models/model.py", HEAD + "def f():\n    import_module('whence.attribute').attribute()\n"),
    ("scores/attribution.py", HEAD + "import_module('whence.views.console')\n"),
    ("answers.py", HEAD + "if TYPE_CHECKING:\n    from whence.question import Question\n"),
    ("attribute.py", HEAD + "from whence.answers import assemble\n"),
    ("core/progress.py", HEAD + "def f():\n    from rich.console import Console\n"),
    ("cli/show.py", HEAD + "def f():\n    import whence\n    import typer\n"),
    ("probe/observe.py", HEAD + "import torch\nfrom whence.models.access import resolve\n\nLIMIT = -1e30\n"),
    ("scores/__init__.py", '"""Scores."""\n\nfrom whence.scores.array import Scores\n\n__all__ = ["Scores"]\n'),
]


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_rules_let_good_files_pass(path, text):
    assert problems(Source(path, text)) == []


def test_lists_of_the_rules_name_files_that_exist():
    paths = {source.path for source in FILES}
    assert paths >= PROGRAMS
    assert {"models/access.py", "models/attention.py", "models/operations.py"} < PROGRAMS - SENT
    assert {(path, one.module) for path, _ in UPWARD_CALLS for source in FILES if source.path == path
            for one in source.imports if one.late} >= UPWARD_CALLS  # fmt: skip
    rooms = {source.room for source in FILES} - {"__init__"}
    assert rooms <= set(FLOOR)


# What an import may load, seen from outside.

LIGHT = [
    ("import whence", {"torch", "nnsight", "transformers", "numpy", "typer", "rich", "pydantic"}),
    ("import whence; dir(whence); whence.METHODS; whence.InputError", {"torch", "nnsight", "transformers", "numpy"}),
    ("import whence.cli", {"torch", "nnsight", "transformers", "numpy", "pydantic"}),
    ("from whence.methods import METHODS; list(METHODS)", {"torch", "nnsight", "transformers", "numpy"}),
    ("from whence.step_functions import STEP_FUNCTIONS; list(STEP_FUNCTIONS)", {"torch", "nnsight", "transformers"}),
    ("from whence import Scores, Attribution, load_attribution", {"torch", "nnsight", "transformers"}),
    ("import whence.models.bundled", {"torch", "nnsight", "transformers"}),
]


def _loaded(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(("code", "heavy"), LIGHT, ids=[code for code, _ in LIGHT])
def test_import_is_light(code, heavy):
    assert not _loaded(code) & heavy


def test_light_import_rule_catches_a_heavy_one():
    assert "numpy" in _loaded("import numpy")


# Names that users see.


def _typed_names(text: str) -> dict[str, str]:
    """Public name -> module, from the ``TYPE_CHECKING`` block."""
    block = next(node for node in ast.parse(text).body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        if ast.unparse(node) == "__version__: str":
            continue
        assert isinstance(node, ast.ImportFrom)
        assert node.module
        for alias in node.names:
            assert alias.asname == alias.name, f"{alias.name} is not marked as public (import X as X)"
            found[alias.name] = node.module.removeprefix("whence.")
    return found


def test_public_names_are_sorted_and_typed():
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert _typed_names(text) == whence._HOME
    # Constants, then classes, then functions, as ruff sorts `__all__`.
    order = sorted(whence._HOME, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert list(whence._HOME) == order
    assert [name for name in whence.__all__ if name != "__version__"] == order
    assert "__version__" in whence.__all__
    assert sorted(dir(whence)) == sorted(whence.__all__)


@pytest.mark.parametrize("name", sorted(whence.__all__))
def test_public_name_can_be_imported(name):
    assert getattr(whence, name) is not None


@pytest.mark.parametrize("name", sorted(set(whence.__all__) - {"__version__", "METHODS", "STEP_FUNCTIONS"}))
def test_public_name_is_defined_in_whence_and_described(name):
    found = getattr(whence, name)
    assert found.__module__.startswith("whence.")
    assert (found.__doc__ or "").strip()


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        _ = whence.atribute  # pyright: ignore[reportAttributeAccessIssue]


# Registries.


@pytest.mark.parametrize("name", list(whence.METHODS))
def test_registered_method_is_what_its_name_says(name):
    method = whence.METHODS[name]
    assert method.name == name
    assert method.title
    assert method.cost
    assert method.needs
    # Only what computes no score has no paper.
    assert method.cites or name == "none"
    assert importlib.import_module(method.__module__).__file__.endswith(f"{name}.py")


@pytest.mark.parametrize("name", list(whence.STEP_FUNCTIONS))
def test_registered_step_function_is_what_its_name_says(name):
    function = whence.STEP_FUNCTIONS[name]
    assert function.name == name
    assert function.fn.__name__ == name
    assert function.fn.__doc__
    assert function.unit
