"""Names with options, as people type them: ``integrated_gradients:n_steps=20,rule=left``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from whence.core.errors import InputError

AGGREGATE = (
    "Operators before showing, in order: head:mean and layer:3 on axes, words, split, normalize, topk:5; see "
    "'Aggregation' in the documentation. Repeatable. A saved file keeps the raw scores."
)


def parse_value(text: str) -> Any:
    """A value as JSON where it is JSON (numbers, true, lists), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["n_steps=20"]`` as a dictionary.

    Raises:
        InputError: A pair has no ``=``, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InputError(f"an option is name=value, such as n_steps=20, not {pair!r}.")
        if name in found:
            raise InputError(f"the option {name} is given twice.")
        found[name] = parse_value(value)
    return found


def parse_named(text: str) -> tuple[str, dict[str, Any]]:
    """``"integrated_gradients:n_steps=20,rule=left"`` as a name and options.

    Raises:
        InputError: An option is not ``name=value``, or comes twice.
    """
    name, _, rest = text.partition(":")
    return name, parse_options([part for part in rest.split(",") if part])
