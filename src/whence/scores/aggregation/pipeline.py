"""Operators as objects, chains of them, and `aggregate`, which applies them and records what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any, overload

import numpy as np

from whence.core.errors import InputError
from whence.scores.aggregation import AGGREGATORS
from whence.scores.aggregation.notation import parse, written
from whence.scores.attribution import Attribution
from whence.scores.attributions import Attributions
from whence.scores.plain import plain


@dataclass(frozen=True, init=False, repr=False)
class Op:
    """One operator with its arguments: what to do with a result.

    Attributes:
        name: A name in `AGGREGATORS`.
        args: Its arguments, by name, where they are not the usual ones; lists are tuples.

    Raises:
        UnknownNameError: No operator has that name; the nearest are listed.
        InputError: The operator does not take these arguments.

    Examples:
        >>> whence.Op("reduce", "head", how="mean")(out)
    """

    name: str
    args: tuple[tuple[str, Any], ...]

    def __init__(self, name: str, /, *args: Any, **options: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "args", _bound(name, args, options))

    def __repr__(self) -> str:
        return f"Op({', '.join([repr(self.name), *(f'{key}={value!r}' for key, value in self.args)])})"

    def __str__(self) -> str:
        return written(self.name, dict(self.args))

    def __call__(self, attribution: Attribution) -> Attribution:
        """The result, with this operator appended to ``info["ops"]``.

        Raises:
            InputError: The operator does not fit the attribution.
        """
        made = AGGREGATORS[self.name](attribution, **dict(self.args))
        if not isinstance(made, Attribution):
            raise InputError(f"the operator {self.name!r} returned a {type(made).__name__}, not an Attribution.")
        record = self.to_dict()
        if dropped := [name for name in attribution.extras if name not in made.extras]:
            record["dropped"] = dropped
        return replace(made, info={**made.info, "ops": (*made.info.get("ops", ()), record)})

    def to_dict(self) -> dict[str, Any]:
        """``{"op": name, "args": {...}}`` as plain data; a function is named."""
        return {"op": self.name, "args": {key: _noted(value) for key, value in self.args}}


@dataclass(frozen=True, init=False, repr=False)
class Pipeline:
    """Operators that are applied one after the other.

    Attributes:
        ops: The operators.

    Raises:
        UnknownNameError: No operator has a name that is used; the nearest are listed.
        InputError: A text does not follow the notation, or an operator does not take its arguments.

    Examples:
        >>> chain = whence.Pipeline("head:mean,layer:3", whence.Op("words"))
        >>> whence.Pipeline(str(chain)) == chain == whence.Pipeline(*chain.to_list())
        True
    """

    ops: tuple[Op, ...]

    def __init__(self, *parts: Any) -> None:
        object.__setattr__(self, "ops", tuple(op for part in parts for op in _ops(part)))

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(repr, self.ops))})"

    def __str__(self) -> str:
        return ",".join(map(str, self.ops))

    def __call__(self, attribution: Attribution) -> Attribution:
        """What the operators make of a result."""
        for op in self.ops:
            attribution = op(attribution)
        return attribution

    def to_list(self) -> list[dict[str, Any]]:
        """One ``{"op": name, "args": {...}}`` per operator, as plain data."""
        return [op.to_dict() for op in self.ops]


@overload
def aggregate(out: Attribution, *parts: Any) -> Attribution: ...


@overload
def aggregate(out: Attributions, *parts: Any) -> Attributions: ...


def aggregate(out: Attribution | Attributions, *parts: Any) -> Attribution | Attributions:
    """A new result, made by operators that are applied one after the other. Nothing runs the model.

    Args:
        out: One result or several.
        *parts: Texts such as ``"head:mean,layer:3,words"``, `Op`, `Pipeline`, or mappings with ``op`` and ``args``.

    Returns:
        As many results as were given. ``info["ops"]`` of each lists what was done, and what was left out of ``extras``.

    Raises:
        UnknownNameError: An operator, reducer, label or step score does not exist; the nearest are listed.
        InputError: An operator does not fit the result, such as one for an axis that it does not have.

    Examples:
        >>> whence.aggregate(out, "layer:mean,words")
    """
    chain = Pipeline(*parts)
    return Attributions(tuple(chain(one) for one in out)) if isinstance(out, Attributions) else chain(out)


def described(record: Mapping[str, Any]) -> str:
    """An entry of ``info["ops"]`` as people read it, also where its operator is not registered."""
    args = {str(key): _canonical(value, key) for key, value in record.get("args", {}).items()}
    return written(str(record.get("op")), args)


def _ops(part: Any) -> tuple[Op, ...]:
    if isinstance(part, Op):
        return (part,)
    if isinstance(part, Pipeline):
        return part.ops
    if isinstance(part, str):
        return tuple(Op(call.name, *call.values, **call.named) for call in parse(part))
    if isinstance(part, Mapping) and "op" in part and isinstance(part.get("args", {}), Mapping):
        return (Op(str(part["op"]), **part.get("args", {})),)
    raise InputError(f"operators are texts, Op, Pipeline, or mappings with 'op' and 'args', not {part!r:.80}.")


def _bound(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The arguments by name, without those that are the usual ones."""
    takes = signature(AGGREGATORS[name])
    try:
        given = takes.bind(None, *args, **options).arguments
    except TypeError as error:
        what = ", ".join(list(takes.parameters)[1:]) or "no arguments"
        raise InputError(f"{name}: {error}; it takes {what}.") from None
    usual = {
        key: _canonical(one.default, key)
        for key, one in list(takes.parameters.items())[1:]
        if one.default is not Parameter.empty
    }
    found = [(key, _canonical(value, key)) for key, value in list(given.items())[1:]]
    return tuple((key, value) for key, value in found if key not in usual or not _same(usual[key], value))


def _same(one: Any, other: Any) -> bool:
    """Equal and of one kind: 1, 1.0 and True are three options."""
    return repr(one) == repr(other)


def _canonical(value: Any, key: str) -> Any:
    """Plain data that never changes; functions stay."""
    if isinstance(value, np.ndarray | range):
        value = list(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return tuple(_canonical(item, key) for item in value)
    if value is None or type(value) in (bool, int, float, str) or callable(value):
        return value
    raise InputError(f"{key}={value!r:.60}: arguments are numbers, texts, lists of them, or functions.")


def _noted(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_noted(item) for item in value]
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else plain(value)
