"""Where values are inside a trace: dotted module paths, and operations found by their line of source.

Travels with `whence.models.access`; the same rules hold.
"""

from __future__ import annotations

from typing import Any

from nnsight.intervention.source import SourceNotAvailable

from whence.core.errors import ModelError
from whence.models.lines import quoted


def resolve(model: Any, path: str) -> Any:
    """The envoy at a dotted path from the root."""
    for part in path.split("."):
        model = getattr(model, part)
    return model


def source_of(model: Any, spec: dict[str, Any]) -> Any:
    """The operations of the ``forward`` of a module, which is instrumented from its next call on."""
    envoy = resolve(model, spec["path"])
    try:
        return envoy.source
    except SourceNotAvailable as error:
        raise ModelError(f"{spec['site']}: the source of {spec['path']} cannot be read: {error}.") from error


def operation(model: Any, spec: dict[str, Any]) -> Any:
    """The operation that a line of a module's ``forward`` makes.

    Operations are found by what their line says rather than by nnsight's running numbers, so that another
    version of transformers gives the same value, or an error.

    Args:
        model: The nnsight model.
        spec: Plain data with ``path`` of the module, ``text`` of the line (whole, or its beginning up to an
            opening parenthesis), ``nth`` of the lines that read so, ``call`` if the function called there is
            meant rather than the value assigned, and ``site`` for messages.

    Returns:
        nnsight's handle on the operation.

    Raises:
        ModelError: There is no such line.
    """
    text, source = spec["text"], source_of(model, spec)
    compiled = source.compiled
    found = quoted(compiled.source, text)
    if len(found) > spec.get("nth", 0):
        # The last operation of the line is the assignment, or the outermost call: the value it makes.
        labels = [label for label, at in compiled.lines.items() if at == found[spec.get("nth", 0)]]
        if spec.get("call"):
            called = text.rpartition(" = ")[2].removesuffix("(").replace(".", "_")
            labels = [label for label in labels if label.rpartition("_")[0] == called]
        if labels:
            return getattr(source, labels[-1])
    raise ModelError(
        f"{spec['site']}: {type(source.envoy._module).__name__}.forward has no line {text!r} in this version "
        f"of transformers, so the value cannot be found; pass family= with the line it has now."
    )


def first_element(value: Any) -> Any:
    """The value itself, or the first element of a tuple that a module returns."""
    return value[0] if isinstance(value, tuple) else value


def with_first_element(old: Any, value: Any) -> Any:
    """What a module returned, with its first (or only) element replaced."""
    return (value, *old[1:]) if isinstance(old, tuple) else value
