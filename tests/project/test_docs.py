"""What is written about whence: examples run, tables agree with the registries, links lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import whence
from rules import ROOT
from snippets import blocks, python_code, whence_commands
from tiny_models import ENCODER_DECODER, FAMILIES, tiny_model, tiny_tokenizer
from whence.models import bundled

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def loaded(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks():
    return loaded(DOCS / "hooks.py")


@pytest.fixture
def added_method():
    """The documented example, taken out of the registry again."""
    before = dict(whence.METHODS._added)
    yield loaded(DOCS / "examples" / "my_method.py")
    whence.METHODS._added.clear()
    whence.METHODS._added.update(before)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# Examples.

needs_bundled = pytest.mark.skipif(
    not all((bundled.path(one) / "model.safetensors").is_file() for one in bundled.NAMES),
    reason="a bundled model is not there; python -m whence.models.bundled.train makes them",
)


@needs_bundled
@pytest.mark.parametrize("page", [page for page in PAGES if python_code(page)], ids=name)
def test_python_of_the_page_runs(page, tmp_path):
    # In a process of its own, from a file: nnsight reads the source of the function that opens a trace.
    script = tmp_path / "page.py"
    script.write_text(python_code(page), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_offline()
    )
    assert done.returncode == 0, done.stderr


@needs_bundled
@pytest.mark.parametrize("page", [page for page in PAGES if whence_commands(page)], ids=name)
def test_commands_of_the_page_run(page, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from whence.cli import app

    monkeypatch.chdir(tmp_path)
    for command in whence_commands(page):
        done = CliRunner().invoke(app, command, prog_name="whence")
        assert done.exit_code == 0, f"whence {command}: {done.output} {done.exception!r}"


def test_code_that_does_not_run_is_python_at_least():
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                compile(block.code, name(page), "exec")
            if block.language == "json":
                json.loads(block.code)


def _offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


# README.


def test_readme_gives_the_two_commands_that_ci_and_make_have():
    commands = [line.split("#")[0].strip() for block in blocks(ROOT / "README.md") for line in block.code.splitlines()]
    assert [line for line in commands if line.startswith("$ make")] == ["$ make demo", "$ make test"]
    assert 'stage "tests" target test\n' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_readme_lists_every_method_as_the_registry_has_it():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (yes|no) \| (yes|no) \| (.+) \|$", README, re.MULTILINE)
    yes = {True: "yes", False: "no"}
    methods = [whence.METHODS[one] for one in whence.METHODS]
    expected = [(one.name, one.title, yes[one.signed], yes[one.additive], one.cost) for one in methods]
    assert rows == expected


def test_readme_lists_every_step_function_and_architecture():
    listed = re.search(r"is one of (.+?)\.\n", README)
    assert listed
    assert re.findall(r"`(\w+)`", listed[1]) == list(whence.STEP_FUNCTIONS)
    known = re.search(r"Known by name: (.+?)\.", README, re.DOTALL)
    assert known
    assert re.split(r",\s+", known[1]) == sorted(FAMILIES)


def test_readme_has_the_figures_of_every_method():
    from benchmarks.evidence import scoring_methods

    block = README.split("<!-- evidence:start -->")[1].split("<!-- evidence:end -->")[0]
    listed = re.findall(r"^\| `(\w+)` \|", block, re.MULTILINE)
    assert sorted(listed) == scoring_methods()
    assert all(f"`whence/{one}`: top 3" in block for one in bundled.NAMES)


def test_readme_marks_are_those_the_benchmark_writes_between():
    from benchmarks.report import written

    page = written(README, "new table", "evidence")
    assert "new table" in page
    assert "held-out examples" not in page


def test_every_method_has_its_class_in_the_reference():
    page = (DOCS / "api" / "methods.md").read_text(encoding="utf-8")
    for path in whence.METHODS.paths().values():
        assert f"\n::: {path.replace(':', '.')}\n" in page


# Pages that are written from the code.


def generated_marks(page: Path) -> list[str]:
    return re.findall(r"<!-- generated: (\S+) -->", page.read_text(encoding="utf-8"))


def test_every_generated_part_stands_on_one_page(hooks):
    used = [mark for page in DOCS.rglob("*.md") for mark in generated_marks(page)]
    assert sorted(used) == sorted(hooks.GENERATED)


def test_marks_are_replaced(hooks):
    for page in DOCS.glob("*.md"):
        assert "<!-- generated:" not in hooks.on_page_markdown(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", list(whence.METHODS))
def test_method_has_a_section_with_everything_about_it(hooks, method):
    found = whence.METHODS[method]
    section = re.search(rf"^## `{method}` .*?(?=^## |\Z)", hooks.methods(), re.MULTILINE | re.DOTALL)
    assert section
    assert found.__doc__.splitlines()[0] in section[0]
    assert found.cost in section[0]
    for field in (one.name for one in dataclasses.fields(found)):
        row = re.search(rf"^\| `{field}` \| (.+?) \| (.+) \|$", section[0], re.MULTILINE)
        assert row, f"no row for the option {field}"
        assert len(row[2].strip()) > 10, f"the option {field} is not described"
    for key in found.cites:
        assert f"(bibliography.md#{key})" in section[0]


@pytest.mark.parametrize("function", list(whence.STEP_FUNCTIONS))
def test_step_function_has_a_section(hooks, function):
    assert re.search(rf"^## `{function}` ", hooks.step_functions(), re.MULTILINE)


def test_every_cited_paper_is_in_the_bibliography():
    keys = re.findall(r"\{ #(\w+) \}", (DOCS / "bibliography.md").read_text(encoding="utf-8"))
    assert len(keys) == len(set(keys))
    assert {key for one in whence.METHODS for key in whence.METHODS[one].cites} <= set(keys)


def test_architectures_of_the_page_are_those_of_the_tests(hooks):
    listed = set(re.findall(r"^\| `(\w+)` \|", hooks.architectures(), re.MULTILINE))
    assert set(FAMILIES) - {"gemma3"} <= listed
    kinds = dict(re.findall(r"^\| `(\w+)` \| ([\w-]+) \|", hooks.architectures(), re.MULTILINE))
    assert set(ENCODER_DECODER) == {kind for kind in kinds if kinds[kind] == "encoder-decoder"}


def test_commands_of_the_page_are_all_there(hooks):
    for command in ("attribute", "methods", "models", "show"):
        assert f"## whence {command}\n" in hooks.commands()
    assert "--max-new-tokens" in hooks.commands()


def test_root_pages_link_to_pages_of_the_documentation(hooks):
    assert "](write-your-own-method.md)" in hooks.contributing()
    assert "](docs/" not in hooks.contributing()


def test_split_docstring(hooks):
    text = (
        "One line.\n\n    ``x``: more.\n\n    Attributes:\n        a: First,\n            and on.\n        b: Second.\n"
    )
    assert hooks.split_docstring(text) == ("One line.\n\n`x`: more.", {"a": "First, and on.", "b": "Second."})


def test_tables_escape_bars(hooks):
    assert hooks.table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


# Names of internal values.


@pytest.mark.parametrize("family", ["llama", "marian"])
def test_sites_of_the_page_are_those_of_the_model(family):
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`(?:embed|blocks|ln_final|unembed).+?) \| ([\w, ]+) \| .+ \|$", page, re.MULTILINE)
    documented = {site: axes for names, axes in rows for site in re.findall(r"`([\w.]+)`", names)}
    sites = whence.load(tiny_model(family), tokenizer=tiny_tokenizer(family)).sites()
    first = {site.name.removeprefix("decoder."): ", ".join(site.axes) for site in sites if "encoder" not in site.name}
    shown = {one for one in first if not one.startswith("blocks.1") and "cross" not in one}
    assert {one: first[one] for one in shown if one in documented} == {
        one: axes for one, axes in documented.items() if one in first
    }
    if family == "llama":
        assert shown == set(documented)


# The example of a method.


def test_my_method_is_what_it_says(added_method):
    model = whence.load(tiny_model("llama"), tokenizer=tiny_tokenizer("llama"))
    ask = {"prompt": "the cat sat on", "continuation": " a red mat"}
    mine = model.attribute(**ask, method="product_norm")
    products = model.attribute(**ask, method="input_x_gradient", units=True)
    assert mine.scores.equals(products.scores.reduce("unit", "l2"), atol=1e-6)
    sums = model.attribute(**ask, method=added_method.ProductNorm(order=1.0))
    assert sums.scores.equals(products.scores.reduce("unit", "l1"), atol=1e-6)
    assert model.attribute(**ask, method="product_norm", layer="all").scores.names == ("step", "token", "layer")
    assert len(model.attribute(**ask, method="product_norm", segments="word").tokens) == 6


def test_my_method_refuses_a_norm_that_is_none(added_method):
    with pytest.raises(whence.InputError, match="positive"):
        added_method.ProductNorm(order=0)


# Links and versions.


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_files_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = link.split("#")[0]
        if target and not re.match(r"https?://", target):
            assert (page.parent / target).exists(), f"{name(page)} links to {link}"


def test_versions_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\] - (?:Unreleased|\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == version("whence") == whence.__version__
    assert f"\nversion: {newest[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_nothing_names_a_place_on_a_machine():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Written so that this file does not name them itself.
    places = re.compile("/" + r"(?:home|Users|root|work|opt)/\w")
    for file in map(ROOT.joinpath, listed.stdout.splitlines()):
        if (
            file.suffix in (".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".sh", ".cff", ".json", "")
            and file.is_file()
        ):
            found = places.search(file.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name(file)} names {found and found[0]}"
