"""Pages that are written from the code: mkdocs calls `on_page_markdown` for every page.

A line ``<!-- generated: NAME -->`` in a page is replaced by what the function of that name returns, so the
tables of methods, step functions, models and commands cannot fall behind the registries.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import whence

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.parity import CALLS, PLACES, absent  # noqa: E402
from benchmarks.parity_models import NAMES  # noqa: E402
from whence.views.explain import facts, places  # noqa: E402

MARK = re.compile(r"^<!-- generated: (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page."""
    return MARK.sub(lambda found: GENERATED[found[1]](), markdown)


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The prose of a Google-style docstring, and the entries of its ``Attributes`` or ``Args``.

    Args:
        text: The docstring.

    Returns:
        The prose as Markdown, and the description of every entry on one line.
    """
    prose, _, rest = re.sub("``(.+?)``", r"`\1`", inspect.cleandoc(text)).partition("\nAttributes:\n")
    if not rest:
        prose, _, rest = prose.partition("\nArgs:\n")
    entries: dict[str, str] = {}
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        if found := re.match(r" {4}(\w+): (.*)", line):
            name = found[1]
            entries[name] = found[2]
        elif entries:
            entries[name] += f" {line.strip()}"
    prose, _, _ = prose.partition("\nReturns:\n")
    return prose.strip(), {name: entry.strip() for name, entry in entries.items()}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def method_list() -> str:
    """One line per method."""
    rows = []
    for name in whence.METHODS:
        method = whence.METHODS[name]
        papers = ", ".join(f"[{key}](bibliography.md#{key})" for key in method.cites) or "-"
        supports = ("yes" if method.layer else "no", "all" if method.encoder_decoder else "decoder-only")
        where = ", ".join(places(method))
        rows.append((f"[`{name}`](#{name})", method.title, method.cost, *supports, where, papers))
    return table(("method", "what a score is", "cost", "`layer=`", "models", "places", "papers"), rows)


def methods() -> str:
    """A section per method: sentence, formula, needs, options, cost, papers."""
    return "\n\n".join(_method(name, whence.METHODS[name]) for name in whence.METHODS)


def _method(name: str, method: Any) -> str:
    prose, entries = split_docstring(method.__doc__)
    known = [(name, value) for name, value in facts(method) if name != "papers"]
    papers = ", ".join(f"[{key}](bibliography.md#{key})" for key in method.cites) or "-"
    known = [("class", f"`{method.__module__}.{method.__name__}`"), *known, ("papers", papers)]
    options = [
        (f"`{field.name}`", f"`{field.default!r}`", entries.get(field.name, "")) for field in dataclasses.fields(method)
    ]
    parts = [f"## `{name}` {{ #{name} }}", prose, table(("", ""), known)]
    parts += ["Options:", table(("option", "default", "meaning"), options)] if options else ["It has no options."]
    return "\n\n".join(parts)


def step_functions() -> str:
    """A section per step function."""
    return "\n\n".join(_step_function(name, whence.STEP_FUNCTIONS[name]) for name in whence.STEP_FUNCTIONS)


MERGED = {
    "geometric": "geometric mean; cannot be explained as a span",
    "log_odds": "log-odds of all tokens together; cannot be explained as a span",
    "max": "highest; cannot be explained as a span",
    "mean": "mean; cannot be explained as a span",
    "min": "lowest; cannot be explained as a span",
    "prod": "product; cannot be explained as a span",
    "sum": "sum over the steps",
}
NEEDED = {
    (): "the run",
    ("contrast",): "`contrast=`",
    ("contrast", "other run"): '`contrast=` with a run of its own (another source, or `evaluate="own"`)',
    ("noisy",): "runs under dropout",
}


def _step_function(name: str, row: Any) -> str:
    prose, entries = split_docstring(row.fn.__doc__)
    facts = [
        ("unit", row.unit),
        (
            "span of steps",
            MERGED[row.merge] if isinstance(row.merge, str) else "difference of the two, each merged on its own",
        ),
        ("target of", "all methods" if row.differentiable else "perturbation methods" if row.attributable else "none"),
        ("needs", NEEDED[tuple(sorted(row.needs))]),
    ]
    parameters = list(inspect.signature(row.fn).parameters.values())[1:]
    options = [(f"`{one.name}`", f"`{one.default!r}`", entries.get(one.name, "")) for one in parameters]
    parts = [f"## `{name}` {{ #{name} }}", prose, table(("", ""), facts)]
    parts += ["Options:", table(("option", "default", "meaning"), options)] if options else []
    return "\n\n".join(parts)


def bundled_models() -> str:
    """The models inside the package."""
    from whence.models import bundled

    return table(("name", "what it is"), [(f"`whence/{name}`", bundled.summary(name)) for name in bundled.NAMES])


def architectures() -> str:
    """Which model types are known by name."""
    from whence.models.families import known_model_types

    known = known_model_types()
    rows = [
        (f"`{kind}`", "encoder-decoder" if known[kind].encoder is not None else "decoder-only", f"`{known[kind].name}`")
        for kind in sorted(known)
    ]
    return table(("model type", "kind", "row of the table"), rows)


def parity() -> str:
    """The lines of the last runs of the parity benchmark."""
    kept = json.loads((ROOT / "docs/parity.json").read_text(encoding="utf-8"))
    used = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    head = ("place", "method", "difference", "largest score", "requests", "sent", "returned", "seconds")
    parts = []
    for model in NAMES:
        rows = []
        for one in [one for one in kept["lines"] if one["model"] == model]:
            counts = [str(one[name]) if one["requests"] else "" for name in ("requests", "sent", "received")]
            numbers = (f"{one['difference']:.1e}", f"{one['size']:.2f}", *counts, f"{one['seconds']:.1f}")
            rows.append((one["place"], one["method"], *numbers))
        parts.append(f"## {model}\n\n{table(head, rows)}")
    return "\n\n".join([*parts, f"With {used}."])


def parity_absent() -> str:
    """Why some lines are not there."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for place in PLACES:
        for model in NAMES:
            for method in CALLS:
                if reason := absent(model, place, method):
                    reasons.setdefault((model, place, reason), []).append(f"`{method}`")
    rows = [
        (model, place, "all" if len(methods) == len(CALLS) else ", ".join(methods), reason)
        for (model, place, reason), methods in reasons.items()
    ]
    return table(("model", "place", "methods", "why not"), rows)


def commands() -> str:
    """What ``--help`` prints, for every command."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from whence.cli import app

    parts = []
    for name in ("", *get_command(app).commands):  # pyright: ignore[reportAttributeAccessIssue]
        words = [name] if name else []
        shown = CliRunner().invoke(app, [*words, "--help"], prog_name="whence", env={"COLUMNS": "100"})
        if shown.exit_code:
            raise RuntimeError(f"whence {name} --help failed: {shown.output}")
        title = " ".join(["whence", *words])
        text = "\n".join(line.rstrip() for line in shown.output.strip().splitlines())
        parts.append(f"## {title}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def my_method() -> str:
    """The example of a method, which the tests run."""
    return f"```python\n{(ROOT / 'docs/examples/my_method.py').read_text(encoding='utf-8').strip()}\n```"


def changelog() -> str:
    """The changelog in the root folder."""
    return _root_page("CHANGELOG.md")


def contributing() -> str:
    """The page for contributors in the root folder."""
    return _root_page("CONTRIBUTING.md")


def _root_page(name: str) -> str:
    """A page of the root folder, whose links into ``docs/`` become links between pages."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for page in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = text.replace(f"]({page}", f"]({page.lower()}")
    return text.replace("](README.md", "](index.md").strip()


GENERATED: dict[str, Callable[[], str]] = {
    "architectures": architectures,
    "bundled-models": bundled_models,
    "changelog": changelog,
    "commands": commands,
    "contributing": contributing,
    "method-list": method_list,
    "methods": methods,
    "my-method": my_method,
    "parity": parity,
    "parity-absent": parity_absent,
    "step-functions": step_functions,
}
