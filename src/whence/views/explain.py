"""What a method is, from its own class: for `whence.explain`, ``whence methods`` and the documentation."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from whence.core.contract import PLACES, AbstractMethod, Need
from whence.methods import METHODS


def explain(method: str | type[AbstractMethod] | AbstractMethod) -> None:
    """Print what a method computes: its docstring, cost, needs, where it runs, and its options.

    Args:
        method: Its name, class, or an object of it.

    Raises:
        UnknownNameError: No method of that name; the nearest are listed.

    Examples:
        >>> whence.explain("occlusion")
    """
    print(description(METHODS[method] if isinstance(method, str) else method))  # noqa: T201 - what it is for


def description(method: Any) -> str:
    """All about a method, as text for a terminal."""
    width = max(len(name) for name, _ in facts(method)) + 2
    lines = [f"{name + ':':{width}} {value}" for name, value in facts(method)]
    options = [f"{field.name}={field.default!r}" for field in dataclasses.fields(method)]
    lines.append(f"{'options:':{width}} {', '.join(options) or '(none)'}")
    return "\n".join([f"{method.name}: {method.title}", "", inspect.cleandoc(method.__doc__ or ""), "", *lines])


def facts(method: Any) -> list[tuple[str, str]]:
    """What the registry knows of a method, name by name."""
    baseline = {
        None: "none: it compares with nothing",
        "zero": "zero, unless baseline= names another",
        "dedicated": "mask, unk or pad token if the model has a trained one, else the mean embedding",
    }[method.auto_baseline]
    targets = "any step function" if method.targets is None else ", ".join(sorted(method.targets))
    if method.targets is None and Need.GRADIENTS in method.needs:
        targets = "any differentiable step function"
    usual = ", ".join(f"{name}={value!r}" for name, value in method.defaults.items())
    found = [
        ("cost", method.cost),
        ("target", targets or "none: it explains no number of the output"),
        ("sign", "signed" if method.signed else "never negative"),
        ("spans", "the score of a span is the sum over its steps" if method.additive else "not additive over steps"),
        ("baseline", baseline),
        ("layer=", "yes" if method.layer else "no"),
        ("models", "decoder-only and encoder-decoder" if method.encoder_decoder else "decoder-only"),
        ("places", ", ".join(places(method))),
        ("needs", ", ".join(sorted(need.value for need in method.needs))),
        ("papers", ", ".join(method.cites) or "-"),
    ]
    return [*found, ("usually", usual)] if usual else found


def places(method: Any) -> Iterator[str]:
    """The places that give everything a method needs."""
    return (place for place, given in PLACES.items() if method.needs <= given)
