"""Which row of the table of architectures is a model's: one that a user gives, or the only one that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from whence.core.errors import ModelError
from whence.models.families import FAMILIES, known_model_types
from whence.models.family import Attention, Family, Line, Stack
from whence.models.fitting import misfits


def family_from(row: Family | Mapping[str, Any]) -> Family:
    """Check a row that a user passes.

    Args:
        row: A `Family`, or a mapping with its fields; stacks are mappings too. ``"like"`` names a known model
            type whose row is the starting point, so that only what differs needs to be given.

    Returns:
        The row.

    Raises:
        ModelError: An unknown field, a field of the wrong type, or an unknown ``"like"``.
    """
    if isinstance(row, Family):
        return row
    import pydantic

    given = dict(row)
    like = given.pop("like", None)
    known = known_model_types()
    if like is not None and like not in known:
        raise ModelError(f"family: there is no row like {like!r}; known: {', '.join(sorted(known))}.")
    base = Family("given") if like is None else known[like]
    given = {"name": "given", **given}
    try:
        return pydantic.TypeAdapter(Family).validate_python(_merged(base, given))
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelError(
            f"family: {wrong}. A family has {_names(Family)}; a stack has {_names(Stack)}; "
            f"its attention has {_names(Attention)}; a line has {_names(Line)}."
        ) from None


def _merged(base: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row, with those of a mapping put over them, stacks field by field."""
    merged = {f.name: getattr(base, f.name) for f in fields(base)}
    starts = {"decoder": Stack(), "encoder": Stack(), "attention": Attention()}
    for name, value in given.items():
        if name in starts and isinstance(value, Mapping):
            value = _merged(merged.get(name) or starts[name], value)
        merged[name] = value
    return merged


def _names(kind: type) -> str:
    return ", ".join(f.name for f in fields(kind))


def recognise(hf_model: Any, config: Any) -> Family:
    """The row of a model whose ``model_type`` is not in the table: the only one that its modules fit.

    Args:
        hf_model: The model.
        config: Its (text) configuration, for the rows that depend on it.

    Returns:
        The row.

    Raises:
        ModelError: No row, or more than one, fits.
    """
    reasons = {family.name: misfits(hf_model, family.configured(config)) for family in FAMILIES}
    fitting = [family for family in FAMILIES if not reasons[family.name]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        found = f"its modules fit {' and '.join(family.name for family in fitting)} alike"
    else:
        # Without the blocks nothing inside them could be looked for.
        nearest = min(reasons, key=lambda name: len(reasons[name]) + 50 * (".blocks" in str(reasons[name])))
        shown = reasons[nearest][:6]
        more = f" and {len(reasons[nearest]) - 6} more" if len(reasons[nearest]) > 6 else ""
        found = f"the nearest family is {nearest!r}, but it does not fit: {', '.join(shown)}{more}"
    raise ModelError(
        f"whence does not know the architecture {hf_model.config.model_type!r}: {found}. Pass family= to say "
        f"where its parts are, starting from a known one: {{'like': 'llama', 'decoder': {{'mlp': 'ffn'}}}}; "
        f"whence.models.family explains the fields. Known: {', '.join(sorted(known_model_types()))}."
    )
